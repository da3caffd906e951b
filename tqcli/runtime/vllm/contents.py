"""What a packed checkpoint's files hold, checked against what it says of itself, and handed out tensor by tensor.

Packed tensors are handed out as `Rows` under the names of the weights that they stand for, so that a model's own rules
for plain checkpoints apply. Our folders list every tensor in tq_config.json: what is missing there or too much is told
before anything is loaded. Left out: published checkpoints' shapes, which only the model tells (`shapes`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tqcli.errors import InputError
from tqcli.formats.native import TQ_CONFIG_NAME
from tqcli.formats.native_section import CODEBOOKS
from tqcli.runtime.headers import Pair, pairs, read_headers
from tqcli.runtime.packed import Shape
from tqcli.runtime.transformers.geometry import format_of
from tqcli.runtime.vllm.rows import rows_of
from tqcli.runtime.vllm.sources import Files, PairOnDisk

if TYPE_CHECKING:
    from pathlib import Path

    from tqcli.runtime.transformers.config import TqConfig

_EXPERT = re.compile(r"\.experts\.(\d{1,9})\.")
Stream = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class Named:
    """What a packed tensor stands for: the weight's name and shape."""

    name: str
    shape: Shape


class PackedFiles:
    """paths: safetensors files of one folder. Raises InputError where halves of pairs are missing."""

    def __init__(self, paths: "Mapping[str, Path]") -> None:
        self.files = Files(paths)
        self.tensors = read_headers(paths.values())
        self.pairs = {pair.name: pair for pair in pairs(self.tensors)}

    def stream(self, config: "TqConfig", named: Mapping[str, Named], dtype: torch.dtype) -> Stream:
        """Every tensor, in the order of the files. named: of every pair. dtype: of what has to be decoded.

        Raises InputError where a pair's sizes are not those of its weight in the declared format.
        """
        by_codes = {pair.codes.name: pair for pair in self.pairs.values()}
        scales = {pair.scales.name for pair in self.pairs.values()}
        sources = {name: self._source(pair, config, named[name].shape) for name, pair in self.pairs.items()}
        for name, tensor in self.tensors.items():
            if name in by_codes:
                base = by_codes[name].name
                weight = named[base]
                yield weight.name, rows_of(sources[base], weight.shape, dtype, torch.device("cpu"))
            elif name not in scales:
                yield name, self.files.tensor(tensor.file, name)

    def _source(self, pair: Pair, config: "TqConfig", shape: Shape) -> PairOnDisk:
        if len(shape) < 2 or pair.rows != prod(shape[:-1]):
            why = f"it has {pair.rows} rows, its weight is {list(shape)}"
            raise InputError(f"packed tensor `{pair.name}` does not fit", why=why)
        return PairOnDisk(pair, format_of(pair, shape[-1], config), shape[-1], self.files)


def recorded(record: Mapping[str, Any], files: PackedFiles) -> dict[str, Named] | None:
    """The weights that tq_config.json lists; None where it lists none, as in published checkpoints.

    Raises InputError where the files hold other tensors than it says, or of other shapes.
    """
    entries = record.get("tensors")
    if entries is None:
        return None
    if not isinstance(entries, Mapping):
        raise InputError(f"`tensors` of {TQ_CONFIG_NAME} must map names to weights")
    shapes = {name: _shape(name, entry) for name, entry in entries.items()}
    plain = {name: one for name, one in files.tensors.items() if not _is_half(name, files)}
    for name in shapes:
        if name not in files.pairs and name not in plain:
            raise InputError(f"tensor `{name}` is missing", why=f"{TQ_CONFIG_NAME} lists it, and no file has it")
    for name in (*files.pairs, *plain):
        if name not in shapes:
            raise InputError(f"tensor `{name}` is one too many", why=f"{TQ_CONFIG_NAME} does not list it")
    for name, tensor in plain.items():
        if tensor.shape != shapes[name]:
            why = f"{TQ_CONFIG_NAME} says {list(shapes[name])}"
            raise InputError(f"tensor `{name}` is {list(tensor.shape)}", why=why)
    return {name: Named(name, shapes[name]) for name in files.pairs}


def check_codebooks(section: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raise InputError where the two differ: every weight of a width would be wrong, and none would look it."""
    said, also = section.get(CODEBOOKS), record.get(CODEBOOKS)
    if not isinstance(said, Mapping) or not isinstance(also, Mapping):
        return
    for bits, levels in also.items():
        if said.get(bits, levels) != levels:
            raise InputError(f"config.json and {TQ_CONFIG_NAME} have different codebooks", why=f"of {bits} bits")


def expert_number(name: str) -> int | None:
    """Which expert a tensor belongs to, where experts lie one by one on disk."""
    found = _EXPERT.search(name)
    return int(found[1]) if found else None


def _is_half(name: str, files: PackedFiles) -> bool:
    base = name.rpartition(".")[0]
    pair = files.pairs.get(base)
    return pair is not None and name in (pair.codes.name, pair.scales.name)


def _shape(name: str, entry: Any) -> Shape:
    shape = entry.get("shape") if isinstance(entry, Mapping) else None
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise InputError(f"{TQ_CONFIG_NAME} does not tell the shape of `{name}`")
    return tuple(shape)
