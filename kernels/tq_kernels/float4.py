"""FP4 E2M1 weights with one scale a group, on NumPy arrays. BF16 travels as uint16, codes and scales as uint8.

A code of four bits is a sign and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6; two lie in a byte, the first in the lower half.

mx: groups of 32 columns. A scale is a power of two, stored as its exponent + 127 (E8M0): two below the exponent of
    the group's greatest magnitude, which counts as the next power of two from 1.75 times a power of two on.
nv: groups of 16 columns. A scale is global_scale * greatest magnitude / 6 in E4M3, and 0.125 where that is 0; it
    stands for itself / global_scale. Which global scale belongs to a weight, `global_scale` tells.

The arithmetic, oddities of half precision and of zeros included, is that of compressed-tensors 0.19 on a CPU. Every
backend gives the same bytes. Left out: names, files and what a checkpoint says about itself.
"""

import ctypes
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tq_kernels import float4_reference
from tq_kernels.backends import selected
from tq_kernels.floats import check_matrix
from tq_kernels.library import DTYPES, check
from tq_kernels.types import FloatDtype

Float4Kind = Literal["mx", "nv"]

GROUPS: dict[Float4Kind, int] = {"mx": 32, "nv": 16}

_KINDS: dict[Float4Kind, int] = {"mx": 0, "nv": 1}
_POINTER, _SMALL, _LARGE, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


def global_scale(absmax: float, dtype: FloatDtype) -> float:
    """The global scale of weights whose greatest magnitude is absmax: 448 * 6 times 1 / absmax, both in their dtype.

    It is 1 where absmax is 0 or that overflows float32. Where it overflows float16 alone, for an absmax below 0.041,
    compressed-tensors takes 1 as well, which leaves few bits to the scales; here it is then not rounded.
    Raises ValueError for an absmax that is negative or more than dtype holds.
    """
    if not 0 <= absmax <= float(np.finfo(np.float16 if dtype == "F16" else np.float32).max):
        raise ValueError(f"absmax must be a finite {dtype} number and not negative, not {absmax}")
    return float4_reference.global_scale(absmax, dtype)


def encode(
    weight: NDArray[Any], dtype: FloatDtype, kind: Float4Kind, *, global_scale: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes and scales of a matrix.

    weight: (rows, columns), C-contiguous, columns a multiple of the group; uint16 for BF16, float16 for F16, float32
    for F32. global_scale: a float32, for nv alone. Returns uint8 (rows, columns / 2) and uint8 (rows, columns / group).
    Raises NonFiniteWeight, for mx also where a scale would need a power of two that dtype has not; ValueError on a
    wrong shape, type or memory layout.
    """
    _check_kind(kind, global_scale)
    check_matrix(weight, dtype, GROUPS[kind])
    _, library = selected()
    if library is None:
        return float4_reference.encode(weight, dtype, kind, global_scale)
    rows, columns = weight.shape
    codes = np.empty((rows, columns // 2), np.uint8)
    scales = np.empty((rows, columns // GROUPS[kind]), np.uint8)
    run = library.function(
        "tq_float4_encode", _SMALL, _SMALL, _SMALL, _FLOAT, _POINTER, _LARGE, _LARGE, _POINTER, _POINTER,
        ctypes.POINTER(_LARGE),
    )  # fmt: skip
    row = _LARGE(-1)
    status = run(
        library.instruction_set, DTYPES[dtype], _KINDS[kind], global_scale,
        weight.ctypes.data, rows, columns, codes.ctypes.data, scales.ctypes.data, row,
    )  # fmt: skip
    check(status, row.value)
    return codes, scales


def decode(
    codes: NDArray[np.uint8], scales: NDArray[np.uint8], kind: Float4Kind, *, global_scale: float = 1.0
) -> NDArray[np.float32]:
    """The matrix (rows, columns) that codes and scales stand for: number * scale in float32.

    codes: uint8 (rows, columns / 2); scales: uint8 (rows, columns / group); both C-contiguous. The mx scale 255 is
    infinite, as its usual reader has it. Raises ValueError where shapes, types or memory layouts do not fit.
    """
    _check_stored(codes, scales, kind, global_scale)
    _, library = selected()
    if library is None:
        return float4_reference.decode(codes, scales, kind, global_scale)
    rows, columns = len(codes), codes.shape[1] * 2
    weight = np.empty((rows, columns), np.float32)
    run = library.function("tq_float4_decode", _SMALL, _SMALL, _FLOAT, _POINTER, _POINTER, _LARGE, _LARGE, _POINTER)
    status = run(
        library.instruction_set, _KINDS[kind], global_scale,
        codes.ctypes.data, scales.ctypes.data, rows, columns, weight.ctypes.data,
    )  # fmt: skip
    check(status)
    return weight


def _check_kind(kind: Float4Kind, global_scale: float) -> None:
    if kind not in GROUPS:
        raise ValueError(f"kind must be one of {', '.join(GROUPS)}, not {kind}")
    if not 0 < global_scale <= float(np.finfo(np.float32).max):
        raise ValueError(f"global_scale must be finite and positive, not {global_scale}")


def _check_stored(codes: NDArray[np.uint8], scales: NDArray[np.uint8], kind: Float4Kind, global_scale: float) -> None:
    if codes.ndim != 2 or codes.dtype != np.uint8 or scales.dtype != np.uint8:
        raise ValueError(f"codes must be a uint8 matrix and scales uint8, not {codes.dtype} {codes.shape}")
    _check_kind(kind, global_scale)
    columns = codes.shape[1] * 2
    if columns < 1 or columns % GROUPS[kind]:
        raise ValueError(f"columns must be a positive multiple of {GROUPS[kind]}, not {columns}")
    expected = (len(codes), columns // GROUPS[kind])
    if scales.shape != expected:
        raise ValueError(f"codes of shape {codes.shape} need scales of shape {expected}, got {scales.shape}")
    if not (codes.flags.c_contiguous and scales.flags.c_contiguous):
        raise ValueError("codes and scales must be C-contiguous")
