"""compressed-tensors folders, ours or published: FP8 and weight-only 4-bit weights, told by names, dtypes and shapes.

config.json says more (activations, groups), which only engines need. What is not known here is refused: zero points,
reordered columns, other widths. Left out: caches and transforms.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.codec.floats import is_float_dtype
from tqcli.errors import InputError
from tqcli.formats.base import Format
from tqcli.formats.fp8 import BLOCK, Fp8
from tqcli.formats.int4 import Int4
from tqcli.formats.mxfp4 import MxFp4
from tqcli.formats.nvfp4 import GLOBAL_SCALE, NvFp4
from tqcli.packed import PackedTensor, Part

QUANT_METHOD = "compressed-tensors"
WEIGHT, PACKED, SCALE, SIZES = ".weight", ".weight_packed", ".weight_scale", ".weight_shape"
_UNKNOWN = (".weight_zero_point", ".weight_g_idx")
# What engines quantise activations by: no part of a weight, and nothing without one.
_ACTIVATIONS = (".input_scale", ".input_global_scale", ".input_zero_point")
_BESIDE = (PACKED, SIZES, GLOBAL_SCALE, *_ACTIVATIONS)
_SIZES = {"I64": "<i8", "I32": "<i4"}


def recognises(checkpoint: Checkpoint) -> bool:
    """By config.json."""
    return _section(checkpoint).get("quant_method") == QUANT_METHOD


def packed_tensors(checkpoint: Checkpoint, record: Mapping[str, Any]) -> dict[str, PackedTensor]:
    """`X.weight` -> weight. Raises InputError for halves, and for what is stored in a way that is not known here."""
    entries = record.get("tensors")
    entries = entries if isinstance(entries, Mapping) else {}
    found = {}
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(_UNKNOWN):
            raise InputError(f"`{name}` is not known here", why="only symmetric weights without reordering are read")
        if name.endswith(SCALE):
            module = name.removesuffix(SCALE)
            found[module + WEIGHT] = _weight(module, tensor, checkpoint, entries.get(module + WEIGHT))
    inside = {tensor.name for packed in found.values() for tensor in packed.tensors}
    for name, tensor in checkpoint.tensors.items():
        if name not in inside and (name.endswith(_BESIDE) or tensor.dtype.startswith("F8_")):
            raise InputError(f"`{name}` has no `{SCALE}` beside it", why="half of a compressed weight is missing")
    return found


def _weight(module: str, scale: TensorInfo, checkpoint: Checkpoint, entry: Any) -> PackedTensor:
    tensors = checkpoint.tensors
    dtype = _dtype(scale, entry)
    codes = _codes(module, scale, tensors)
    stored_as, columns = _format(codes, scale)
    shape = (codes.shape[0], columns)
    if stored_as is None or stored_as.refusal(shape):
        raise _unknown(module, codes, scale)
    expected = [one for one in stored_as.stored(module + WEIGHT, shape, dtype) if one.content is None]
    parts = (codes, scale, *_global_scale(module, stored_as, tensors))
    if [(one.name, one.dtype, one.shape) for one in expected] != [(one.name, one.dtype, one.shape) for one in parts]:
        why = f"codes {list(codes.shape)} do not go with scales {list(scale.shape)}"
        raise InputError(f"`{module}{WEIGHT}` is damaged", why=why)
    extra = tuple(tensors[module + suffix] for suffix in (SIZES, *_ACTIVATIONS) if module + suffix in tensors)
    _check_sizes(module, shape, checkpoint)
    return PackedTensor(
        name=module + WEIGHT,
        format=stored_as,
        parts=tuple(Part(part, one.block_rows) for part, one in zip(parts, expected, strict=True)),
        rows=shape[0],
        columns=columns,
        shape=shape,
        dtype=dtype,
        extra=extra,
    )


def _codes(module: str, scale: TensorInfo, tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    found = [tensors[module + suffix] for suffix in (PACKED, WEIGHT) if module + suffix in tensors]
    if not found:
        raise InputError(f"`{scale.name}` has no weight beside it", why="half of a compressed weight is missing")
    if len(found) > 1:
        raise InputError(f"`{module}{WEIGHT}` is there twice", why=f"as it is, and as `{PACKED}`")
    codes = found[0]
    if len(codes.shape) != 2 or len(scale.shape) != 2 or codes.parameters == 0 or scale.parameters == 0:
        raise _unknown(module, codes, scale)
    return codes


def _unknown(module: str, codes: TensorInfo, scale: TensorInfo) -> InputError:
    why = f"codes {codes.dtype} {list(codes.shape)}, scales {scale.dtype} {list(scale.shape)}"
    return InputError(f"`{module}{WEIGHT}` is stored in a way that is not known here", why=why)


def _check_sizes(module: str, shape: tuple[int, int], checkpoint: Checkpoint) -> None:
    """Raises InputError where `.weight_shape`, which some readers go by, says something else than the codes do."""
    sizes = checkpoint.tensors.get(module + SIZES)
    if sizes is None:
        return
    if sizes.dtype not in _SIZES or sizes.shape != (2,):
        raise InputError(f"`{sizes.name}` is no shape", why=f"{sizes.dtype} {list(sizes.shape)}")
    # On the Hub each would be a request of its own, and there are tens of thousands.
    if isinstance(checkpoint.storage, LocalFolder):
        said = checkpoint.storage.read(sizes.file, sizes.offset, sizes.nbytes)
        found = np.frombuffer(said, _SIZES[sizes.dtype]).tolist()
        if found != list(shape):
            raise InputError(f"`{module}{WEIGHT}` is {list(shape)}", why=f"`{SIZES}` says {found}")


def _global_scale(module: str, stored_as: Format, tensors: Mapping[str, TensorInfo]) -> tuple[TensorInfo, ...]:
    """The third part of an NVFP4 weight; raises InputError where it is missing, or where no other format has one."""
    found = tensors.get(module + GLOBAL_SCALE)
    if (found is not None) != isinstance(stored_as, NvFp4):
        raise InputError(f"`{module}{WEIGHT}` is not whole", why=f"`{GLOBAL_SCALE}` goes with NVFP4 scales alone")
    return (found,) if found else ()


def _format(codes: TensorInfo, scale: TensorInfo) -> tuple[Format | None, int]:
    """The format that two tensors tell of, and the columns of the weight."""
    rows, width = codes.shape
    if codes.dtype == "F8_E4M3" and is_float_dtype(scale.dtype):
        if scale.shape == (rows, 1):
            return Fp8(strategy="channel"), width
        blocks = (-(-rows // BLOCK), -(-width // BLOCK))
        return (Fp8(strategy="block") if scale.shape == blocks else None), width
    if codes.dtype == "I32" and is_float_dtype(scale.dtype):
        size = width * 8 // scale.shape[1] if scale.shape[1] else 0
        return (Int4.model_validate({"group_size": size}) if size in (32, 64, 128) else None), width * 8
    if codes.dtype == "U8" and scale.dtype in ("U8", "F8_E8M0"):
        return MxFp4(), width * 2
    if codes.dtype == "U8" and scale.dtype == "F8_E4M3":
        return NvFp4(), width * 2
    return None, width


def _dtype(scale: TensorInfo, entry: Any) -> FloatDtype:
    """What the weight was before: scales are in its dtype. Where they are in a float of eight bits, our record says."""
    if is_float_dtype(scale.dtype):
        return scale.dtype
    said = entry.get("dtype") if isinstance(entry, Mapping) else None
    return said if isinstance(said, str) and is_float_dtype(said) else "BF16"


def _section(checkpoint: Checkpoint) -> Mapping[str, Any]:
    section = checkpoint.config.get("quantization_config")
    return section if isinstance(section, Mapping) else {}
