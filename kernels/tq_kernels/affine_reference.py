"""MLX's affine quantisation in NumPy: the definition that every native backend equals bit for bit.

The "minmax" rule is that of `mx.quantize` on the CPU backend of MLX 0.32; kernels/cpu/affine_search.h says what
"least-squares" does and why. Exactness rests on three rules, here and there: float32 arithmetic that rounds after each
operation, sums over a group in the order of its weights, comparisons that are false for NaN. Arrays are transposed,
(group size, groups), so that every line works on all groups at once.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tq_kernels.floats import narrow, rounded, widen
from tq_kernels.types import FloatDtype, NonFiniteWeight

Floats = NDArray[np.float32]

_SHRUNKEN = (1.0, 0.85, 0.7, 0.55)
_STEPS = 4
_STRIDE = np.float32(2.5)


class Pair(NamedTuple):
    """Scale and bias of each group, float32 (groups,)."""

    scale: Floats
    bias: Floats


def encode(
    weight: NDArray[Any], dtype: FloatDtype, bits: int, group_size: int, scale: str
) -> tuple[NDArray[np.uint32], NDArray[Any], NDArray[Any]]:
    """As tq_kernels.affine.encode, which checks the arguments."""
    rows, columns = weight.shape
    values = np.ascontiguousarray(widen(weight, dtype).reshape(-1, group_size).T)
    largest = np.float32((1 << bits) - 1)
    with np.errstate(all="ignore"):
        _check_finite(values, columns // group_size)
        pair = _minmax(values, largest) if scale == "minmax" else _search(values, largest, dtype)
        codes = _codes(values, pair, largest).astype(np.uint8)
    shape = (rows, columns // group_size)
    return (
        _pack(codes.T.reshape(rows, columns), bits),
        narrow(pair.scale, dtype).reshape(shape),
        narrow(pair.bias, dtype).reshape(shape),
    )


def decode(
    words: NDArray[np.uint32], scales: NDArray[Any], biases: NDArray[Any], dtype: FloatDtype, bits: int, group_size: int
) -> Floats:
    """As tq_kernels.affine.decode, which checks the arguments."""
    codes = _unpack(words, bits).reshape(*scales.shape, group_size).astype(np.float32)
    with np.errstate(all="ignore"):
        values = codes * widen(scales, dtype)[:, :, None] + widen(biases, dtype)[:, :, None]
    return values.reshape(len(scales), -1)


def _stored_as(pair: Pair, dtype: FloatDtype) -> Pair:
    return Pair(*(rounded(part, dtype) for part in pair))


def _check_finite(values: Floats, groups_in_row: int) -> None:
    broken = ~np.isfinite(values.max(0) - values.min(0))
    if broken.any():
        raise NonFiniteWeight(int(np.argmax(broken)) // groups_in_row)


def _minmax(values: Floats, largest: np.float32) -> Pair:
    low, high = values.min(0), values.max(0)
    below = np.abs(low) > np.abs(high)
    edge = np.where(below, low, high)
    width = np.maximum((high - low) / largest, np.float32(1e-7))
    step = np.where(below, width, -width)
    steps = np.rint(edge / step)
    moved = steps != 0
    divisor = np.where(moved, steps, np.float32(1))
    return Pair(np.where(moved, edge / divisor, step), np.where(moved, edge, np.float32(0)))


def _nearest(places: Floats, largest: np.float32) -> Floats:
    """The codes, as floats, of positions on the grid; 0 for NaN."""
    positive: Floats = np.where(places > 0, places, np.float32(0))
    codes: Floats = np.rint(np.where(positive < largest, positive, largest))
    return codes


def _codes(values: Floats, pair: Pair, largest: np.float32) -> Floats:
    return _nearest((values - pair.bias) / pair.scale, largest)


def _sum(terms: Floats) -> Floats:
    total: Floats = np.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def _search(values: Floats, largest: np.float32, dtype: FloatDtype) -> Pair:
    first = _stored_as(_minmax(values, largest), dtype)
    second = _next_scale(first, dtype) if largest > 63 else _stored_as(_least_squares(values, largest), dtype)
    better = (_error(values, second, largest) < _error(values, first, largest)) & (second.scale != 0)
    return Pair(*(np.where(better, b, a) for a, b in zip(first, second, strict=True)))


def _next_scale(pair: Pair, dtype: FloatDtype) -> Pair:
    stored = narrow(pair.scale, dtype)
    further = stored.view(np.uint32) + np.uint32(1) if dtype == "F32" else stored.view(np.uint16) + np.uint16(1)
    return Pair(widen(further.view(stored.dtype), dtype), pair.bias)


def _error(values: Floats, pair: Pair, largest: np.float32) -> Floats:
    lost = _codes(values, pair, largest) * pair.scale + pair.bias - values
    return _sum(lost * lost)


def _least_squares(values: Floats, largest: np.float32) -> Pair:
    low, high = values.min(0), values.max(0)
    mean = _sum(values) * np.float32(1 / len(values))
    centred = values - mean
    half = (high - low) * np.float32(0.5)
    middle = low + half - mean
    best = Pair(np.zeros_like(mean), np.zeros_like(mean))
    most = np.zeros_like(mean)
    for shrunken in _SHRUNKEN:
        reach = half * np.float32(shrunken)
        found, explained = _descend(centred, Pair(reach * np.float32(2) / largest, middle - reach), largest)
        better = explained > most
        best = Pair(*(np.where(better, b, a) for a, b in zip(best, found, strict=True)))
        most = np.where(better, explained, most)
    return Pair(best.scale, best.bias + mean)


def _descend(centred: Floats, pair: Pair, largest: np.float32) -> tuple[Pair, Floats]:
    for _ in range(1, _STEPS):
        target, _ = _fit(centred, pair, largest)
        scale = pair.scale + _STRIDE * (target.scale - pair.scale)
        bias = pair.bias + _STRIDE * (target.bias - pair.bias)
        pair = Pair(np.where(scale > 0, scale, target.scale), bias)
    return _fit(centred, pair, largest)


def _fit(centred: Floats, pair: Pair, largest: np.float32) -> tuple[Pair, Floats]:
    """The pair that fits best to the codes of `pair`, and how much of the sum of squares it explains."""
    codes = _nearest(centred * (np.float32(1) / pair.scale) + -pair.bias / pair.scale, largest)
    total, squares, products = _sum(codes), _sum(codes * codes), _sum(codes * centred)
    share = np.float32(1 / len(centred))
    variance = squares - total * total * share
    fits = (variance > 0) & (products > 0)
    scale = products / variance
    kept = Pair(np.where(fits, scale, pair.scale), np.where(fits, -scale * (total * share), pair.bias))
    return kept, np.where(fits, products * scale, np.float32(0))


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Rows of codes as rows of uint32: one little-endian bit stream, `bits` bits a code."""
    planes = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little")
    packed: NDArray[np.uint32] = np.packbits(planes.reshape(len(codes), -1), axis=1, bitorder="little").view("<u4")
    return packed.reshape(len(codes), codes.shape[1] * bits // 32)


def _unpack(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    planes = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    grouped = planes.reshape(len(words), words.shape[1] * 32 // bits, bits)
    return np.packbits(grouped, axis=2, bitorder="little")[:, :, 0]
