"""INT4 weights with one scale a group of 32, 64 or 128 columns, on NumPy arrays. BF16 travels as uint16.

A number is -8 to 7 and stands for number * scale. Eight of them lie in a word, the first in its lowest four bits, each
as number + 8. How a scale is chosen:

absmax: the group's greatest magnitude / 7.5, rounded to the weight's dtype, or the dtype's epsilon where that is 0;
    quotients weight / scale are rounded to the dtype before they are rounded to integers. This is compressed-tensors'
    own arithmetic.
search: that scale, and fifteen shares of the least scale that cuts nothing off, 50/48 down to 36/48, all rounded to
    the dtype; the one with the least squared error wins, the first of equals. (Groups all below 2**-120, where
    reciprocals of scales overflow, may get any of them.)
signed: as search, but the shares carry the sign that puts the greatest magnitude on the side of -8.

Every backend gives the same bytes. Left out: names, files and what a checkpoint says about itself.
"""

import ctypes
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tq_kernels import int4_reference
from tq_kernels.backends import selected
from tq_kernels.floats import check_matrix, dtype_of
from tq_kernels.library import DTYPES, check
from tq_kernels.types import FloatDtype

Int4Scale = Literal["absmax", "search", "signed"]

GROUP_SIZES = (32, 64, 128)
PER_WORD = 8

_SCALES: dict[Int4Scale, int] = {"absmax": 0, "search": 1, "signed": 2}
_POINTER, _SMALL, _LARGE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


def encode(
    weight: NDArray[Any], dtype: FloatDtype, group_size: int, *, scale: Int4Scale = "search"
) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Words and scales of a matrix.

    weight: (rows, columns), C-contiguous, columns a multiple of group_size; uint16 for BF16, float16 for F16, float32
    for F32. Returns int32 (rows, columns / 8) and scales of dtype (rows, columns / group_size).
    Raises NonFiniteWeight for NaN, Inf and magnitudes of half the dtype's range or more, whose decode could overflow;
    ValueError on a wrong shape, type or memory layout.
    """
    _check_size(group_size)
    check_matrix(weight, dtype, group_size)
    if scale not in _SCALES:
        raise ValueError(f"scale must be one of {', '.join(_SCALES)}, not {scale}")
    _, library = selected()
    if library is None:
        return int4_reference.encode(weight, dtype, group_size, scale)
    rows, columns = weight.shape
    words = np.empty((rows, columns // PER_WORD), np.int32)
    scales = np.empty((rows, columns // group_size), weight.dtype)
    run = library.function(
        "tq_int4_encode", _SMALL, _SMALL, _SMALL, _SMALL, _POINTER, _LARGE, _LARGE, _POINTER, _POINTER,
        ctypes.POINTER(_LARGE),
    )  # fmt: skip
    row = _LARGE(-1)
    status = run(
        library.instruction_set, DTYPES[dtype], _SCALES[scale], group_size,
        weight.ctypes.data, rows, columns, words.ctypes.data, scales.ctypes.data, row,
    )  # fmt: skip
    check(status, row.value)
    return words, scales


def decode(words: NDArray[np.int32], scales: NDArray[Any], group_size: int) -> NDArray[np.float32]:
    """The matrix (rows, columns) that words and scales stand for: number * scale in float32.

    words: int32 (rows, columns / 8); scales: (rows, columns / group_size), uint16 for BF16, float16 or float32; both
    C-contiguous. Raises ValueError where shapes, types or memory layouts do not fit.
    """
    dtype = _check_stored(words, scales, group_size)
    _, library = selected()
    if library is None:
        return int4_reference.decode(words, scales, dtype, group_size)
    rows, columns = len(words), words.shape[1] * PER_WORD
    weight = np.empty((rows, columns), np.float32)
    run = library.function("tq_int4_decode", _SMALL, _SMALL, _SMALL, _POINTER, _POINTER, _LARGE, _LARGE, _POINTER)
    status = run(
        library.instruction_set, DTYPES[dtype], group_size,
        words.ctypes.data, scales.ctypes.data, rows, columns, weight.ctypes.data,
    )  # fmt: skip
    check(status)
    return weight


def _check_size(group_size: int) -> None:
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, not {group_size}")


def _check_stored(words: NDArray[np.int32], scales: NDArray[Any], group_size: int) -> FloatDtype:
    """The dtype of the scales; ValueError unless they and the words hold a matrix."""
    if words.ndim != 2 or words.dtype != np.int32:
        raise ValueError(f"words must be an int32 matrix, not {words.dtype} {words.shape}")
    columns = words.shape[1] * PER_WORD
    _check_size(group_size)
    if columns < 1 or columns % group_size:
        raise ValueError(f"columns must be a positive multiple of {group_size}, not {columns}")
    if scales.shape != (len(words), columns // group_size):
        raise ValueError(f"words of shape {words.shape} need scales {(len(words), columns // group_size)}")
    if not (words.flags.c_contiguous and scales.flags.c_contiguous):
        raise ValueError("words and scales must be C-contiguous")
    return dtype_of(scales)
