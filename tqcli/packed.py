"""The packed tensors of a checkpoint, ours or published, found by name and explained by their own geometry.

Covers every published generation of the native format: base names with and without `.weight`, codes flat or by row,
widths told by sizes where no file says them. Knows nothing of models; columns that only the model knows stay open.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.shards import read_bounded
from tqcli.errors import InputError
from tqcli.formats.native import FORMAT_VERSION, NORMS, PACKED, TQ_CONFIG_NAME
from tqcli.formats.tq import Tq


@dataclass(frozen=True)
class PackedTensor:
    """One weight in two tensors. shape: the original one, where the folder says it; else None."""

    name: str
    codes: TensorInfo
    norms: TensorInfo
    tq: Tq
    shape: tuple[int, ...] | None

    @property
    def rows(self) -> int:
        """All leading dimensions of the weight together."""
        return self.norms.shape[0]

    @property
    def columns(self) -> int:
        """Last dimension of the weight; with the padding where the folder does not say."""
        return self.shape[-1] if self.shape else self.norms.shape[1] * self.tq.group_size

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.codes.nbytes + self.norms.nbytes


def read_tq_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """tq_config.json; empty where there is none. Raises InputError if it is damaged or from a newer tq."""
    storage = checkpoint.storage
    if TQ_CONFIG_NAME not in storage.files():
        return {}
    config = parse_object(read_bounded(storage, TQ_CONFIG_NAME), TQ_CONFIG_NAME)
    version = config.get("format_version", 0)
    if type(version) is not int or version > FORMAT_VERSION:
        why = f"its format_version is {json.dumps(version)}, this tq knows {FORMAT_VERSION}"
        raise InputError(f"`{storage.label}` was written by a newer tq", why=why, fix="upgrade tqcli")
    return config


def packed_tensors(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, PackedTensor]:
    """Base name -> packed tensor. Raises InputError for half a pair or sizes that fit no width."""
    names = checkpoint.tensors
    bases = [name.removesuffix(PACKED) for name in names if name.endswith(PACKED)]
    for name in names:
        if name.endswith(NORMS) and name.removesuffix(NORMS) + PACKED not in names:
            raise InputError(f"`{name}` has no `{PACKED}` beside it", why="half of a packed tensor is missing")
    return {base: _packed(base, checkpoint, config) for base in bases}


def _packed(base: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> PackedTensor:
    codes = checkpoint.tensors[base + PACKED]
    norms = checkpoint.tensors.get(base + NORMS)
    if norms is None:
        raise InputError(f"`{codes.name}` has no `{NORMS}` beside it", why="half of a packed tensor is missing")
    if codes.dtype != "U8" or norms.dtype != "F32" or len(norms.shape) != 2 or norms.parameters == 0:
        raise InputError(f"`{base}` is no packed tensor", why=f"codes {codes.dtype}, norms {norms.dtype} {norms.shape}")
    entry = _entry(base, config) or _entry(base, _section(checkpoint))
    tq = _geometry(base, codes, norms, {**_defaults(checkpoint, config), **entry})
    return PackedTensor(base, codes, norms, tq, _shape(base, norms, tq, entry, config))


def _entry(base: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What tq_config.json says of one tensor, or, where that file is lost, config.json."""
    tensors = config.get("tensors")
    entry = tensors.get(base) if isinstance(tensors, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def _defaults(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**_section(checkpoint), **config}


def _section(checkpoint: Checkpoint) -> Mapping[str, Any]:
    section = checkpoint.config.get("quantization_config")
    return section if isinstance(section, Mapping) else {}


def _geometry(base: str, codes: TensorInfo, norms: TensorInfo, said: Mapping[str, Any]) -> Tq:
    """Bits follow from the sizes once the group size is known; what the files say must agree."""
    group_size, seed = said.get("group_size", 128), said.get("seed", 42)
    bits, rest = divmod(codes.parameters * 8, norms.parameters * group_size) if _is_size(group_size) else (0, 1)
    if rest or bits not in (2, 3, 4) or group_size not in (32, 64, 128, 256):
        why = f"{codes.parameters} bytes of codes for {norms.parameters} groups of {group_size}"
        raise InputError(f"`{base}` has sizes that fit no width", why=why)
    rows, count = norms.shape
    width = bits * group_size // 8
    if codes.shape not in ((rows * count, width), (rows, count * width)):
        raise InputError(f"`{base}` is no packed tensor", why=f"codes {codes.shape} do not go with norms {norms.shape}")
    # Per-tensor entries are ours and exact; the global width of published folders is only a default.
    if "shape" in said and said.get("bits") != bits:
        raise InputError(f"`{base}` is {bits}-bit", why=f"`{TQ_CONFIG_NAME}` says {json.dumps(said.get('bits'))}")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise InputError(f"`{base}` has no usable seed", why=f"it is {json.dumps(seed)}")
    return Tq.model_validate({"bits": bits, "group_size": group_size, "seed": seed})


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _shape(
    base: str, norms: TensorInfo, tq: Tq, entry: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[int, ...] | None:
    rows, count = norms.shape
    shape = entry.get("shape")
    if shape is None:
        padded = config.get("orig_in_dims")
        columns = padded.get(base) if isinstance(padded, Mapping) else None
        shape = [rows, columns] if columns is not None else None
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) < 2 or not all(_is_size(size) for size in shape):
        raise InputError(f"`{base}` has no usable shape in `{TQ_CONFIG_NAME}`", why=json.dumps(shape)[:80])
    leading = 1
    for size in shape[:-1]:
        leading *= size
    if leading != rows or -(-shape[-1] // tq.group_size) != count:
        raise InputError(f"`{base}` is not as large as `{TQ_CONFIG_NAME}` says", why=f"norms {rows} x {count}, {shape}")
    return tuple(shape)
