"""compressed-tensors folders, ours or published: FP8 and weight-only 4-bit weights, told by names, dtypes and shapes.

config.json says more (activations, groups), which only engines need. What is not known here is refused: zero points,
reordered columns, other widths. Left out: caches and transforms.
"""

from collections.abc import Mapping
from typing import Any

from tq_kernels.types import FloatDtype

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
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


def recognises(checkpoint: Checkpoint) -> bool:
    """By config.json."""
    return _section(checkpoint).get("quant_method") == QUANT_METHOD


def packed_tensors(checkpoint: Checkpoint, record: Mapping[str, Any]) -> dict[str, PackedTensor]:
    """`X.weight` -> weight. Raises InputError for halves, and for what is stored in a way that is not known here."""
    del record
    found = {}
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(_UNKNOWN):
            raise InputError(f"`{name}` is not known here", why="only symmetric weights without reordering are read")
        if name.endswith(SCALE):
            module = name.removesuffix(SCALE)
            found[module + WEIGHT] = _weight(module, tensor, checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        module = name.removesuffix(PACKED).removesuffix(WEIGHT)
        if (
            (name.endswith(PACKED) or tensor.dtype.startswith("F8_"))
            and module + WEIGHT not in found
            and (not name.endswith(SCALE))
        ):
            raise InputError(f"`{name}` has no `{SCALE}` beside it", why="half of a compressed weight is missing")
    return found


def _weight(module: str, scale: TensorInfo, tensors: Mapping[str, TensorInfo]) -> PackedTensor:
    codes = tensors.get(module + PACKED) or tensors.get(module + WEIGHT)
    if codes is None or len(codes.shape) != 2 or codes.parameters == 0 or len(scale.shape) != 2:
        raise InputError(f"`{scale.name}` has no weight beside it", why="half of a compressed weight is missing")
    stored_as, columns = _format(codes, scale)
    if stored_as is None:
        why = f"codes {codes.dtype} {list(codes.shape)}, scales {scale.dtype} {list(scale.shape)}"
        raise InputError(f"`{module}{WEIGHT}` is stored in a way that is not known here", why=why)
    shape = (codes.shape[0], columns)
    expected = [one for one in stored_as.stored(module + WEIGHT, shape, _dtype(scale)) if one.content is None]
    parts = (codes, scale, *_global_scale(module, stored_as, tensors))
    if [(one.dtype, one.shape) for one in expected] != [(part.dtype, part.shape) for part in parts]:
        why = f"codes {list(codes.shape)} do not go with scales {list(scale.shape)}"
        raise InputError(f"`{module}{WEIGHT}` is damaged", why=why)
    sizes = tensors.get(module + SIZES)
    return PackedTensor(
        name=module + WEIGHT,
        format=stored_as,
        parts=tuple(Part(part, one.block_rows) for part, one in zip(parts, expected, strict=True)),
        rows=shape[0],
        columns=columns,
        shape=shape,
        dtype=_dtype(scale),
        extra=(sizes,) if sizes else (),
    )


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


def _dtype(scale: TensorInfo) -> FloatDtype:
    """What the weight was before: scales are in its dtype, or in a float of eight bits."""
    return scale.dtype if is_float_dtype(scale.dtype) else "BF16"


def _section(checkpoint: Checkpoint) -> Mapping[str, Any]:
    section = checkpoint.config.get("quantization_config")
    return section if isinstance(section, Mapping) else {}
