"""The packed tensors of a checkpoint, ours or published, found by name and explained by their own geometry.

Covers every published generation of the native format: base names with and without `.weight`, codes flat or by row,
widths told by sizes where no file says them. Knows nothing of models; columns that only the model knows stay open.
"""

import json
from collections.abc import Mapping
from typing import Any

from tq_kernels.types import FloatDtype

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
from tqcli.codec.floats import is_float_dtype
from tqcli.errors import InputError
from tqcli.formats.native import NORMS, PACKED, QUANT_METHOD, TQ_CONFIG_NAME
from tqcli.formats.tq import Tq
from tqcli.packed import PackedTensor, Part


def recognises(checkpoint: Checkpoint) -> bool:
    """By the names of its tensors; by config.json where nothing is packed."""
    return _section(checkpoint).get("quant_method") == QUANT_METHOD or any(
        name.endswith((PACKED, NORMS)) for name in checkpoint.tensors
    )


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
    rows, count = norms.shape
    shape = _shape(base, norms, tq, entry, config)
    return PackedTensor(
        name=base,
        format=tq,
        parts=(Part(codes), Part(norms)),
        rows=rows,
        columns=shape[-1] if shape else count * tq.group_size,
        shape=shape,
        padding=0 if shape else tq.group_size - 1,
        dtype=_dtype(entry),
    )


def _dtype(entry: Mapping[str, Any]) -> FloatDtype:
    """What the weight was before, where the folder says it; BF16, as nearly all are, where it does not."""
    dtype = entry.get("dtype")
    return dtype if isinstance(dtype, str) and is_float_dtype(dtype) else "BF16"


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
