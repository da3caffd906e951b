"""HLWQ on NumPy arrays: blocks of 128 weights, rotated, each coordinate an index of 2 to 8 bits, a half norm a block.

The levels come from the caller: which table a file means, and the older ways to pack indices, are the codec's business
(`tqcli.codec`). Every backend gives the same bytes.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq_kernels import hlwq_reference
from tq_kernels.arrays import first_non_finite
from tq_kernels.backends import selected
from tq_kernels.floats import NUMPY, check_matrix
from tq_kernels.library import DTYPES, Library, check
from tq_kernels.types import FloatDtype, NonFiniteWeight

BLOCK = 128
BITS = (2, 3, 4, 5, 6, 8)

_POINTER, _SMALL, _LARGE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class NormTooLarge(NonFiniteWeight):
    """A block of a finite row has a norm of 65520 or more, which no float16 holds."""

    def __init__(self, row: int) -> None:
        ValueError.__init__(self, f"row {row} holds a block of {BLOCK} weights whose norm is too large for float16")
        self.row = row


def blocks(columns: int) -> int:
    """Blocks in a row of `columns` weights; the last one is padded with zeros."""
    return -(-columns // BLOCK)


def encode(
    weight: NDArray[Any], dtype: FloatDtype, midpoints: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Packed indices and norms of a matrix.

    weight: (rows, columns), C-contiguous; uint16 for BF16, float16 for F16, float32 for F32.
    midpoints: float32 (2**bits - 1,), ascending, in standard deviations; a value equal to one takes the lower index.
    Returns uint8 (rows * blocks * 16 * bits,), the first index in the highest bits of the first byte, and float16
    (rows, blocks). A norm below 2**-25 is stored as 0 and its block decodes to zeros.
    Raises NonFiniteWeight, its subclass NormTooLarge, and ValueError on a wrong shape, type or memory layout.
    """
    if dtype not in NUMPY:
        raise ValueError(f"{dtype} weights must come as BF16, F16 or F32")
    check_matrix(weight, dtype)
    bits = _bits_of(midpoints, len(midpoints) + 1)
    rows, columns = weight.shape
    _, library = selected()
    packed = np.empty(rows * blocks(columns) * BLOCK * bits // 8, dtype=np.uint8)
    norms = np.empty((rows, blocks(columns)), dtype=np.float16)
    try:
        if library is None:
            return hlwq_reference.encode(weight, dtype, midpoints)
        _encode_native(library, weight, dtype, midpoints, packed, norms)
    except NonFiniteWeight as error:
        if first_non_finite(weight[error.row], dtype) is None:
            raise NormTooLarge(error.row) from None
        raise
    return packed, norms


def decode(
    packed: NDArray[np.uint8], norms: NDArray[np.float16], columns: int, levels: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The matrix float32 (rows, columns) that packed indices and norms stand for.

    packed: uint8 of any shape with rows * blocks * 16 * bits bytes; norms: float16 (rows, blocks);
    levels: float32 (2**bits,), in standard deviations. Raises ValueError where sizes, types or layouts do not fit.
    """
    bits = _bits_of(levels, len(levels))
    _check_stored(packed, norms, columns, bits)
    _, library = selected()
    if library is None:
        return hlwq_reference.decode(packed, norms, columns, levels)
    weight = np.empty((len(norms), columns), dtype=np.float32)
    function = library.function(
        "tq_hlwq_decode", _SMALL, _SMALL, _POINTER, _POINTER, _POINTER, _LARGE, _LARGE, _POINTER
    )
    addresses = levels.ctypes.data, packed.ctypes.data, norms.ctypes.data
    check(function(library.instruction_set, bits, *addresses, len(norms), columns, weight.ctypes.data))
    return weight


def _encode_native(
    library: Library,
    weight: NDArray[Any],
    dtype: FloatDtype,
    midpoints: NDArray[np.float32],
    packed: NDArray[np.uint8],
    norms: NDArray[np.float16],
) -> None:
    function = library.function(
        "tq_hlwq_encode", _SMALL, _SMALL, _SMALL, _POINTER, _POINTER, _LARGE, _LARGE, _POINTER, _POINTER, _POINTER
    )
    row = ctypes.c_int64(-1)
    bits = _bits_of(midpoints, len(midpoints) + 1)
    addresses = packed.ctypes.data, norms.ctypes.data, ctypes.byref(row)
    kind = library.instruction_set, DTYPES[dtype], bits
    check(function(*kind, midpoints.ctypes.data, weight.ctypes.data, *weight.shape, *addresses), row.value)


def _bits_of(table: NDArray[np.float32], count: int) -> int:
    bits = count.bit_length() - 1
    if table.ndim != 1 or table.dtype != np.float32 or not table.flags.c_contiguous:
        raise ValueError(f"a table must be a contiguous float32 vector, not {table.dtype} {table.shape}")
    if bits not in BITS or count != 1 << bits:
        raise ValueError(f"a table must have 2**bits levels, bits one of {BITS}; it has {count}")
    return bits


def _check_stored(packed: NDArray[np.uint8], norms: NDArray[np.float16], columns: int, bits: int) -> None:
    if packed.dtype != np.uint8 or norms.dtype != np.float16:
        raise ValueError(f"packed must be uint8 and norms float16, not {packed.dtype} and {norms.dtype}")
    if not (packed.flags.c_contiguous and norms.flags.c_contiguous):
        raise ValueError("packed and norms must be C-contiguous")
    if columns < 1 or norms.ndim != 2 or norms.shape[1] != blocks(columns):
        raise ValueError(f"{columns} columns need norms of shape (rows, {blocks(columns)}), got {norms.shape}")
    if packed.size != norms.size * BLOCK * bits // 8:
        raise ValueError(f"{norms.size} blocks of {bits}-bit indices are not {packed.size} bytes")
