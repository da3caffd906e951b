"""The trellis format on NumPy arrays: groups of 128 (or 64, 32, 16) weights, each coded as one path through a trellis.

A weight's window is eight bits of its group's stream, `bits` of them its own, and a codebook of 256 numbers says what
a window stands for; a group has one 16-bit number beside its codes, its scale and the bits that precede the first
code. Layout and arithmetic are told in docs/trellis-format.md, how codes are found in `tq_kernels.trellis_reference`.

Every backend gives the same bytes. Left out: where codebooks and signs come from, names and files.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq_kernels import trellis_reference
from tq_kernels.backends import selected
from tq_kernels.floats import NUMPY, check_matrix
from tq_kernels.library import DTYPES, Library, check
from tq_kernels.trellis_tables import BITS, GROUPS, TrellisTables, groups
from tq_kernels.types import FloatDtype

__all__ = ["BITS", "GROUPS", "TrellisTables", "decode", "encode", "groups"]

_POINTER, _SMALL, _LARGE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


def encode(
    weight: NDArray[Any], dtype: FloatDtype, tables: TrellisTables
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Codes and group numbers of a matrix.

    weight: (rows, columns), C-contiguous, columns a multiple of 16; uint16 for BF16, float16 for F16, float32 for F32.
    Returns uint8 (rows, columns * bits / 8) and int16 (rows, groups), scale and start state of each group.
    Raises NonFiniteWeight for NaN, Inf and groups whose scale would exceed the format's largest, about 1 for one unit
    of the codebook; ValueError on a wrong shape, type or memory layout.
    """
    check_matrix(weight, dtype, GROUPS[-1])
    rows, columns = weight.shape
    _, library = selected()
    if library is None:
        return trellis_reference.encode(weight, dtype, tables)
    codes = np.empty((rows, columns * tables.bits // 8), dtype=np.uint8)
    meta = np.empty((rows, len(groups(columns))), dtype=np.int16)
    _encode_native(library, weight, dtype, tables, codes, meta)
    return codes, meta


def decode(
    codes: NDArray[np.uint8],
    meta: NDArray[np.int16],
    columns: int,
    tables: TrellisTables,
    dtype: FloatDtype = "F32",
) -> NDArray[Any]:
    """The matrix (rows, columns) that codes and group numbers stand for, in `dtype` (BF16 as uint16).

    codes: uint8 (rows, columns * bits / 8); meta: int16 (rows, groups). Values are rounded to nearest even.
    Raises ValueError where shapes, types or memory layouts do not fit.
    """
    _check_stored(codes, meta, columns, tables)
    if dtype not in NUMPY:
        raise ValueError(f"dtype must be one of {', '.join(NUMPY)}, not {dtype}")
    _, library = selected()
    if library is None:
        return trellis_reference.decode(codes, meta, columns, tables, dtype)
    weight = np.empty((len(codes), columns), dtype=NUMPY[dtype])
    _decode_native(library, codes, meta, dtype, tables, weight)
    return weight


def _encode_native(
    library: Library,
    weight: NDArray[Any],
    dtype: FloatDtype,
    tables: TrellisTables,
    codes: NDArray[np.uint8],
    meta: NDArray[np.int16],
) -> None:
    function = library.function(
        "tq_trellis_encode", _SMALL, _SMALL, _SMALL, _POINTER, _POINTER, ctypes.c_float, _POINTER, _SMALL, _POINTER,
        _LARGE, _LARGE, _POINTER, _POINTER, _POINTER,
    )  # fmt: skip
    deviation = trellis_reference.deviation(tables.codebook, tables.bits)
    multipliers = trellis_reference.multipliers(tables.scales, tables.bits)
    row = ctypes.c_int64(-1)
    status = function(
        library.instruction_set, DTYPES[dtype], tables.bits, tables.codebook.ctypes.data, _signs(tables), deviation,
        multipliers.ctypes.data, len(multipliers), weight.ctypes.data, *weight.shape, codes.ctypes.data,
        meta.ctypes.data, ctypes.byref(row),
    )  # fmt: skip
    check(status, row.value)


def _decode_native(
    library: Library,
    codes: NDArray[np.uint8],
    meta: NDArray[np.int16],
    dtype: FloatDtype,
    tables: TrellisTables,
    weight: NDArray[Any],
) -> None:
    function = library.function(
        "tq_trellis_decode", _SMALL, _SMALL, _SMALL, _POINTER, _POINTER, _POINTER, _POINTER, _LARGE, _LARGE, _POINTER
    )
    status = function(
        library.instruction_set, DTYPES[dtype], tables.bits, tables.codebook.ctypes.data, _signs(tables),
        codes.ctypes.data, meta.ctypes.data, *weight.shape, weight.ctypes.data,
    )  # fmt: skip
    check(status)


def _signs(tables: TrellisTables) -> int | None:
    return None if tables.signs is None else tables.signs.ctypes.data


def _check_stored(codes: NDArray[np.uint8], meta: NDArray[np.int16], columns: int, tables: TrellisTables) -> None:
    if codes.dtype != np.uint8 or meta.dtype != np.int16:
        raise ValueError(f"codes must be uint8 and meta int16, not {codes.dtype} and {meta.dtype}")
    if not (codes.flags.c_contiguous and meta.flags.c_contiguous):
        raise ValueError("codes and meta must be C-contiguous")
    expected = (columns * tables.bits // 8, len(groups(columns)))
    if codes.ndim != 2 or meta.ndim != 2 or (codes.shape[1], meta.shape[1]) != expected or len(codes) != len(meta):
        raise ValueError(f"{columns} columns need codes and meta {expected} wide, got {codes.shape} and {meta.shape}")
