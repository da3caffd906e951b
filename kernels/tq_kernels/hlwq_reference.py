"""HLWQ in plain NumPy: the definition that the native kernels equal bit for bit. Slow, and needs nothing built.

Each step is one float32 operation in a fixed order. Left out: checks of the arguments (`tq_kernels.hlwq`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq_kernels.floats import widen
from tq_kernels.types import FloatDtype, NonFiniteWeight

_BLOCK = 128
_LANES = 8  # sums of squares that run side by side
_LEAST_NORM = np.float32(1e-10)
_HALF_OVERFLOW = np.float32(65520)  # this and more rounds to infinity
_SCALE = np.float32(1 / _BLOCK)  # both halves of 1 / sqrt(128) * 1 / sqrt(128), exact


def encode(
    weight: NDArray[Any], dtype: FloatDtype, midpoints: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """See `tq_kernels.hlwq.encode`. Raises NonFiniteWeight also where a norm does not fit float16."""
    values, norms = normalised(weight, dtype)
    bits = (len(midpoints) + 1).bit_length() - 1
    indices = np.searchsorted(midpoints, values.reshape(-1)).astype(np.uint8)
    return pack(indices, bits), norms.astype(np.float16)


def decode(
    packed: NDArray[np.uint8], norms: NDArray[np.float16], columns: int, levels: NDArray[np.float32]
) -> NDArray[np.float32]:
    """See `tq_kernels.hlwq.decode`."""
    bits = len(levels).bit_length() - 1
    rows, count = norms.shape
    indices = unpack(packed, bits, norms.size * _BLOCK)
    rotated = _transform(levels[indices].reshape(rows, count, _BLOCK))
    weight = rotated * (norms.astype(np.float32) * _SCALE)[:, :, None]
    return np.ascontiguousarray(weight.reshape(rows, count * _BLOCK)[:, :columns])


def normalised(weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rotated blocks at unit variance, float32 (rows, blocks, 128), and their norms, float32 (rows, blocks).

    This is what is compared with the midpoints. Raises NonFiniteWeight where a norm does not fit float16.
    """
    wide = widen(weight, dtype)
    count = -(-wide.shape[1] // _BLOCK)
    padded = np.pad(wide, ((0, 0), (0, count * _BLOCK - wide.shape[1])))
    in_blocks = padded.reshape(len(wide), count, _BLOCK)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        norms = np.maximum(_lengths(in_blocks), _LEAST_NORM)
        broken = ~(norms < _HALF_OVERFLOW).all(axis=1)
        if broken.any():
            raise NonFiniteWeight(int(np.argmax(broken)))
        unit = np.divide(_transform(in_blocks), norms[:, :, None], dtype=np.float32)
        return unit, norms


def pack(indices: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """A flat run of indices -> their lowest `bits` bits one after another, the highest bit first; zeros at the end."""
    every_bit = np.unpackbits(indices.reshape(-1, 1), axis=1)
    return np.packbits(every_bit[:, 8 - bits :])


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` indices of a packed run."""
    stream = np.unpackbits(packed.reshape(-1), count=count * bits).reshape(count, bits)
    return np.packbits(np.pad(stream, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]


def _lengths(values: NDArray[np.float32]) -> NDArray[np.float32]:
    squares = (values * values).reshape(*values.shape[:-1], _BLOCK // _LANES, _LANES)
    sums = squares[..., 0, :]
    for row in range(1, squares.shape[-2]):
        sums = sums + squares[..., row, :]
    total = sums[..., 0]
    for lane in range(1, _LANES):
        total = total + sums[..., lane]
    length: NDArray[np.float32] = np.sqrt(total)
    return length


def _transform(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The Walsh-Hadamard transform of the last axis without a factor, distances 1, 2, 4, ..."""
    distance = 1
    while distance < _BLOCK:
        pairs = values.reshape(*values.shape[:-1], _BLOCK // (2 * distance), 2, distance)
        left, right = pairs[..., 0, :], pairs[..., 1, :]
        values = np.stack([left + right, left - right], axis=-2).reshape(values.shape)
        distance *= 2
    return values
