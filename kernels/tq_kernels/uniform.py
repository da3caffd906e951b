"""Symmetric uniform quantisation to 8 or 4 bits with a half-precision scale a group of columns, on NumPy arrays.

A code stands for code * scale: -127 to 127 at 8 bits, an int8 each; -8 to 7 at 4 bits, two a byte. Rows stand alone, so
that a table's rows are decoded one by one. The last group of a row is as short as it comes. BF16 travels as uint16.

A scale is the group's greatest magnitude / 127 (at 8 bits) or / 8 (at 4), rounded away from zero to half precision and
2**-24 at least. At 4 bits it is negative where the greatest magnitude is that of a positive weight, which so becomes
-8. Codes are weight / scale, rounded to nearest even, of the scale as stored. How a scale is chosen:

absmax: that one. Rounded away from zero it cuts nothing off at 8 bits: no weight is off by more than half a scale.
search: it and fifteen others, of the divisors 126.5, 126 ... 119.5 or 7.25, 7.5 ... 11; the one with the least squared
    error, the first of equals. At 8 bits that is luck of rounding, which loses 8% less in groups of 128.

Every backend gives the same bytes. Left out: names, files and what a checkpoint says about itself.
"""

import ctypes
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tq_kernels import uniform_reference
from tq_kernels.arrays import first_non_finite
from tq_kernels.backends import selected
from tq_kernels.floats import NUMPY, check_matrix
from tq_kernels.library import DTYPES, Library, check
from tq_kernels.types import FloatDtype, NonFiniteWeight

Bits = Literal[4, 8]
UniformScale = Literal["absmax", "search"]

GROUP_SIZES = (32, 64, 128, 256)

_SCALES: dict[UniformScale, int] = {"absmax": 0, "search": 1}
_POINTER, _SMALL, _LARGE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class ScaleTooLarge(NonFiniteWeight):
    """A finite weight is so large that its group's scale fits no half, or that its decode might overflow its dtype."""

    def __init__(self, row: int) -> None:
        ValueError.__init__(self, f"row {row} holds a weight too large for uniform codes with a float16 scale")
        self.row = row


def groups(columns: int, group_size: int) -> int:
    """Groups, and scales, in a row of `columns` weights; the last may be short."""
    return -(-columns // group_size)


def row_bytes(columns: int, bits: Bits) -> int:
    """Bytes, and entries, that the codes of a row of `columns` weights take."""
    return columns if bits == 8 else -(-columns // 2)


def encode(
    weight: NDArray[Any], dtype: FloatDtype, bits: Bits, group_size: int, scale: UniformScale
) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """Codes and scales of a matrix.

    weight: (rows, columns), C-contiguous; uint16 for BF16, float16 for F16, float32 for F32.
    Returns codes, at 8 bits int8 (rows, columns), at 4 bits uint8 (rows, ceil(columns / 2)) with the even column in the
    low half; and scales, float16 (rows, ceil(columns / group_size)), finite, none of them 0.
    Raises NonFiniteWeight for NaN and Inf, its subclass ScaleTooLarge for magnitudes above 65504 * 127 (8 bits) or
    65504 * 8 (4 bits), for F16 from 2**15 on; ValueError on a wrong shape, type or memory layout.
    """
    _check_options(bits, group_size)
    check_matrix(weight, dtype)
    if scale not in _SCALES:
        raise ValueError(f"scale must be one of {', '.join(_SCALES)}, not {scale}")
    _, library = selected()
    try:
        if library is None:
            return uniform_reference.encode(weight, dtype, bits, group_size, scale)
        return _encode_native(library, weight, dtype, bits, group_size, scale)
    except NonFiniteWeight as error:
        if first_non_finite(weight[error.row], dtype) is None:
            raise ScaleTooLarge(error.row) from None
        raise


def decode(
    codes: NDArray[Any],
    scales: NDArray[np.float16],
    columns: int,
    bits: Bits,
    group_size: int,
    dtype: FloatDtype = "F32",
) -> NDArray[Any]:
    """The matrix (rows, columns) of dtype that codes and scales stand for; any rows of an encoded matrix will do.

    codes and scales: as `encode` gives them, C-contiguous. Each value is code * scale in float32, rounded once more, to
    nearest even, where dtype is BF16 or F16. A scale that is NaN or Inf, which `encode` never gives, gives those.
    Raises ValueError where sizes, types or memory layouts do not fit.
    """
    _check_options(bits, group_size)
    if dtype not in NUMPY:
        raise ValueError(f"dtype must be one of {', '.join(NUMPY)}, not {dtype}")
    _check_stored(codes, scales, columns, bits, group_size)
    _, library = selected()
    if library is None:
        return uniform_reference.decode(codes, scales, columns, bits, group_size, dtype)
    weight = np.empty((len(codes), columns), NUMPY[dtype])
    run = library.function(
        "tq_uniform_decode", _SMALL, _SMALL, _SMALL, _SMALL, _POINTER, _POINTER, _LARGE, _LARGE, _POINTER
    )
    status = run(
        library.instruction_set, DTYPES[dtype], bits, group_size,
        codes.ctypes.data, scales.ctypes.data, len(codes), columns, weight.ctypes.data,
    )  # fmt: skip
    check(status)
    return weight


def _encode_native(
    library: Library, weight: NDArray[Any], dtype: FloatDtype, bits: Bits, group_size: int, scale: UniformScale
) -> tuple[NDArray[Any], NDArray[np.float16]]:
    rows, columns = weight.shape
    codes = np.empty((rows, row_bytes(columns, bits)), np.int8 if bits == 8 else np.uint8)
    scales = np.empty((rows, groups(columns, group_size)), np.float16)
    run = library.function(
        "tq_uniform_encode", _SMALL, _SMALL, _SMALL, _SMALL, _SMALL, _POINTER, _LARGE, _LARGE, _POINTER, _POINTER,
        ctypes.POINTER(_LARGE),
    )  # fmt: skip
    row = _LARGE(-1)
    status = run(
        library.instruction_set, DTYPES[dtype], bits, group_size, _SCALES[scale],
        weight.ctypes.data, rows, columns, codes.ctypes.data, scales.ctypes.data, row,
    )  # fmt: skip
    check(status, row.value)
    return codes, scales


def _check_options(bits: int, group_size: int) -> None:
    if bits not in get_args(Bits):
        raise ValueError(f"bits must be 4 or 8, not {bits}")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, not {group_size}")


def _check_stored(codes: NDArray[Any], scales: NDArray[np.float16], columns: int, bits: Bits, group_size: int) -> None:
    kind = np.int8 if bits == 8 else np.uint8
    if codes.dtype != kind or scales.dtype != np.float16:
        raise ValueError(f"codes must be {kind.__name__} and scales float16, not {codes.dtype} and {scales.dtype}")
    if not (codes.flags.c_contiguous and scales.flags.c_contiguous):
        raise ValueError("codes and scales must be C-contiguous")
    if columns < 1 or codes.ndim != 2 or codes.shape[1] != row_bytes(columns, bits):
        raise ValueError(f"{columns} columns need codes of shape (rows, {row_bytes(columns, bits)}), got {codes.shape}")
    expected = len(codes), groups(columns, group_size)
    if scales.shape != expected:
        raise ValueError(f"codes of shape {codes.shape} need scales {expected}, got {scales.shape}")
