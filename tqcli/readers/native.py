"""The packed tensors of a native folder, ours or published, found by name: a pair of tensors for each.

Left out: which format a pair is in (`native_tq` explains the published pairs by their own sizes, `native_declared` the
others by what the folder says). Knows nothing of models; columns that only the model knows stay open.
"""

from collections.abc import Mapping
from typing import Any

from tqcli.checkpoint.reader import Checkpoint
from tqcli.errors import InputError
from tqcli.formats.native import PAIRS, QUANT_METHOD, SUFFIXES
from tqcli.packed import PackedTensor
from tqcli.readers import native_declared, native_tq
from tqcli.readers.native_pair import Pair, Said


def recognises(checkpoint: Checkpoint) -> bool:
    """By the names of its tensors; by config.json where nothing is packed."""
    return _section(checkpoint).get("quant_method") == QUANT_METHOD or any(
        name.endswith(SUFFIXES) for name in checkpoint.tensors
    )


def packed_tensors(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, PackedTensor]:
    """Base name -> packed tensor. Raises InputError for half a pair, or sizes that do not fit what the folder says."""
    section = _section(checkpoint)
    found: dict[str, PackedTensor] = {}
    for pair in _pairs(checkpoint):
        said = Said(_entry(pair.base, config) or _entry(pair.base, section), config, section)
        explain = native_tq.packed_tensor if pair.format == "tq" else native_declared.packed_tensor
        if pair.base in found:
            raise InputError(f"`{pair.base}` is there twice", why=f"as `{found[pair.base].format.label}` and otherwise")
        found[pair.base] = explain(pair, said)
    return found


def _pairs(checkpoint: Checkpoint) -> list[Pair]:
    """Every pair, in the order of the files."""
    tensors = checkpoint.tensors
    endings = {ending: (name, pair) for name, pair in PAIRS.items() for ending in pair}
    found = []
    for tensor in tensors.values():
        ending = "." + tensor.name.rpartition(".")[2]
        if ending not in endings:
            continue
        name, (first, second) = endings[ending]
        other = tensor.name.removesuffix(ending) + (second if ending == first else first)
        if other not in tensors:
            raise InputError(f"`{tensor.name}` has no `{other}` beside it", why="half of a packed tensor is missing")
        if ending == first:
            found.append(Pair(tensor.name.removesuffix(first), name, tensor, tensors[other]))
    return found


def _entry(base: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What tq_config.json says of one tensor, or, where that file is lost, config.json."""
    tensors = config.get("tensors")
    entry = tensors.get(base) if isinstance(tensors, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def _section(checkpoint: Checkpoint) -> Mapping[str, Any]:
    section = checkpoint.config.get("quantization_config")
    return section if isinstance(section, Mapping) else {}
