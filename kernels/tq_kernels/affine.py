"""MLX's affine quantisation on NumPy arrays: per group an unsigned code a weight, a scale and a bias.

A weight reads as code * scale + bias. Left out: the names of tensors, and everything that is not affine.
"""

import ctypes
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tq_kernels.backends import selected
from tq_kernels.floats import NUMPY, check_matrix, dtype_of
from tq_kernels.library import DTYPES, check
from tq_kernels.types import FloatDtype

AffineScale = Literal["minmax", "least-squares"]
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_ENCODE = (*[ctypes.c_int32] * 5, ctypes.c_void_p, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 4)
_DECODE = (*[ctypes.c_int32] * 4, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2, ctypes.c_void_p)


def encode(
    weight: NDArray[Any], dtype: FloatDtype, *, bits: int, group_size: int, scale: AffineScale
) -> tuple[NDArray[np.uint32], NDArray[Any], NDArray[Any]]:
    """Packed codes, scales and biases of a matrix.

    weight: (rows, columns), C-contiguous, columns a multiple of group_size; uint16 for BF16, float16 for F16, float32
    for F32. scale: "minmax" for the bytes of `mx.quantize` (MLX 0.32, CPU backend), "least-squares" for less error.
    Returns uint32 (rows, columns * bits / 32), each row a little-endian bit stream of codes, and scales and biases
    (rows, columns / group_size) in the weight's type. Raises NonFiniteWeight where a weight is NaN or Inf or a group's
    range overflows float32, and ValueError on a wrong shape, type or memory layout.
    """
    _check_options(bits, group_size, scale)
    check_matrix(weight, dtype, group_size)
    _, library = selected()
    if library is None:
        from tq_kernels import affine_reference

        return affine_reference.encode(weight, dtype, bits, group_size, scale)
    rows, columns = weight.shape
    words = np.empty((rows, columns * bits // 32), dtype=np.uint32)
    scales, biases = (np.empty((rows, columns // group_size), dtype=weight.dtype) for _ in range(2))
    row = ctypes.c_int64(-1)
    status = library.function("tq_affine_encode", *_ENCODE)(
        library.instruction_set, DTYPES[dtype], bits, group_size, int(scale == "least-squares"),
        weight.ctypes.data, rows, columns,
        words.ctypes.data, scales.ctypes.data, biases.ctypes.data, ctypes.addressof(row),
    )  # fmt: skip
    check(status, row.value)
    return words, scales, biases


def decode(
    words: NDArray[np.uint32], scales: NDArray[Any], biases: NDArray[Any], *, bits: int, group_size: int
) -> NDArray[np.float32]:
    """The matrix that codes, scales and biases stand for: code * scale, then + bias, in float32.

    words: uint32 (rows, columns * bits / 32); scales, biases: (rows, columns / group_size), uint16 for BF16, float16 or
    float32. Returns (rows, columns). Raises ValueError where shapes, types or memory layouts do not fit.
    """
    _check_options(bits, group_size, "minmax")
    dtype = _check_stored(words, scales, biases, bits, group_size)
    _, library = selected()
    if library is None:
        from tq_kernels import affine_reference

        return affine_reference.decode(words, scales, biases, dtype, bits, group_size)
    rows, columns = len(scales), scales.shape[1] * group_size
    weight = np.empty((rows, columns), dtype=np.float32)
    status = library.function("tq_affine_decode", *_DECODE)(
        library.instruction_set, DTYPES[dtype], bits, group_size,
        words.ctypes.data, scales.ctypes.data, biases.ctypes.data, rows, columns, weight.ctypes.data,
    )  # fmt: skip
    check(status)
    return weight


def _check_options(bits: int, group_size: int, scale: AffineScale) -> None:
    if bits not in BITS or group_size not in GROUP_SIZES:
        raise ValueError(f"bits must be one of {BITS} and group_size one of {GROUP_SIZES}, not {bits} and {group_size}")
    if scale not in ("minmax", "least-squares"):
        raise ValueError(f"scale must be minmax or least-squares, not {scale}")


def _check_stored(
    words: NDArray[np.uint32], scales: NDArray[Any], biases: NDArray[Any], bits: int, group_size: int
) -> FloatDtype:
    """The dtype of scales and biases."""
    if scales.dtype not in NUMPY.values() or biases.dtype != scales.dtype or words.dtype != np.uint32:
        raise ValueError(f"unexpected types: codes {words.dtype}, scales {scales.dtype}, biases {biases.dtype}")
    if scales.ndim != 2 or biases.shape != scales.shape or scales.shape[1] < 1:
        raise ValueError(f"scales and biases must be equally large matrices, not {scales.shape} and {biases.shape}")
    expected = (len(scales), scales.shape[1] * group_size * bits // 32)
    if words.shape != expected:
        raise ValueError(f"scales of shape {scales.shape} need codes of shape {expected}, got {words.shape}")
    if not (words.flags.c_contiguous and scales.flags.c_contiguous and biases.flags.c_contiguous):
        raise ValueError("codes, scales and biases must be C-contiguous")
    return dtype_of(scales)
