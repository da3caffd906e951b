"""FP8 E4M3 weights with one scale a block, on NumPy arrays. BF16 travels as uint16, codes as uint8.

A block is any number of rows by any number of columns, cut at the edges of the matrix; a block of one whole row is
what compressed-tensors calls a channel. Left out: names, files and what a checkpoint says about itself.
"""

import ctypes
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tq_kernels import float8_reference
from tq_kernels.backends import selected
from tq_kernels.floats import check_matrix, dtype_of
from tq_kernels.library import DTYPES, check
from tq_kernels.types import FloatDtype

Division = Literal["float32", "weight"]
Block = tuple[int, int]

_DIVISIONS: dict[Division, int] = {"float32": 0, "weight": 1}
_POINTER, _SMALL, _LARGE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


def encode(
    weight: NDArray[Any], dtype: FloatDtype, block: Block, *, division: Division = "float32"
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Codes and scales of a matrix.

    weight: (rows, columns), C-contiguous; uint16 for BF16, float16 for F16, float32 for F32. block: rows and columns
    of a block. A scale is the greatest magnitude of its block / 448, rounded to dtype, and the dtype's epsilon where
    that is 0; a code is weight / scale, rounded to nearest even and at most 448. division: "float32" rounds the
    quotient once, to the code; "weight" rounds it to dtype before. (The rule of compressed-tensors 0.19 on new GPUs
    and on CPUs.) Returns uint8 (rows, columns) and scales of dtype (blocks down, blocks across).
    Raises NonFiniteWeight, and ValueError on a wrong shape, type or memory layout.
    """
    check_matrix(weight, dtype)
    _check_choices(block, division)
    _, library = selected()
    if library is None:
        return float8_reference.encode(weight, dtype, block, division)
    codes = np.empty(weight.shape, np.uint8)
    scales = np.empty(_blocks(weight.shape, block), weight.dtype)
    run = library.function(
        "tq_float8_encode", _SMALL, _SMALL, _SMALL, _LARGE, _LARGE,
        _POINTER, _LARGE, _LARGE, _POINTER, _POINTER, ctypes.POINTER(_LARGE),
    )  # fmt: skip
    row = _LARGE(-1)
    status = run(
        library.instruction_set, DTYPES[dtype], _DIVISIONS[division], *block,
        weight.ctypes.data, *weight.shape, codes.ctypes.data, scales.ctypes.data, row,
    )  # fmt: skip
    check(status, row.value)
    return codes, scales


def decode(codes: NDArray[np.uint8], scales: NDArray[Any], block: Block) -> NDArray[np.float32]:
    """The matrix that codes and scales stand for: code * scale in float32.

    codes: uint8 (rows, columns); scales: (blocks down, blocks across), uint16 for BF16, float16 or float32; both
    C-contiguous. The codes 127 and 255 are NaN. Raises ValueError where shapes, types or memory layouts do not fit.
    """
    dtype = _check_stored(codes, scales, block)
    _, library = selected()
    if library is None:
        return float8_reference.decode(codes, scales, dtype, block)
    weight = np.empty(codes.shape, np.float32)
    run = library.function(
        "tq_float8_decode", _SMALL, _SMALL, _LARGE, _LARGE, _POINTER, _POINTER, _LARGE, _LARGE, _POINTER
    )
    status = run(
        library.instruction_set, DTYPES[dtype], *block,
        codes.ctypes.data, scales.ctypes.data, *codes.shape, weight.ctypes.data,
    )  # fmt: skip
    check(status)
    return weight


def _blocks(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    return tuple(-(-size // part) for size, part in zip(shape, block, strict=True))


def _check_choices(block: Block, division: Division) -> None:
    if min(block) < 1:
        raise ValueError(f"a block must have at least one row and one column, not {block}")
    if division not in _DIVISIONS:
        raise ValueError(f"division must be one of {', '.join(_DIVISIONS)}, not {division}")


def _check_stored(codes: NDArray[np.uint8], scales: NDArray[Any], block: Block) -> FloatDtype:
    """The dtype of the scales; ValueError unless they and the codes hold a matrix."""
    _check_choices(block, "float32")
    if codes.ndim != 2 or codes.shape[1] < 1 or codes.dtype != np.uint8:
        raise ValueError(f"codes must be a uint8 matrix with at least one column, not {codes.dtype} {codes.shape}")
    if scales.shape != _blocks(codes.shape, block):
        raise ValueError(
            f"codes of shape {codes.shape} in blocks of {block} need scales of shape "
            f"{_blocks(codes.shape, block)}, got {scales.shape}"
        )
    if not (codes.flags.c_contiguous and scales.flags.c_contiguous):
        raise ValueError("codes and scales must be C-contiguous")
    return dtype_of(scales)
