"""The trellis format in plain NumPy: the definition that the native kernels equal bit for bit. Needs nothing built.

How a group is encoded, every step in this order:

1. An exact power of two brings its greatest magnitude into [1, 2). Rotated groups are multiplied by the signs and
   transformed (Walsh-Hadamard without a factor, float32, distances 1, 2, 4, ...).
2. Squares are summed in sixteen lanes (weight i in lane i mod 16, in order), then the lanes in halves: 8, 4, 2, 1.
   `deviation / sqrt(sum / size)`, each operation rounded to float32, brings the coordinates to 1/16 units of the
   codebook, and they are rounded to integers. From here on everything is integer.
3. For each multiplier a coordinate becomes a cell, one of 1, 2 or 4 to a unit of the codebook that cover somewhat more
   than its range, and the path with the least sum of costs is found. A cost is the squared distance of the cell's
   middle from the window's number, less that of the nearest number, in a unit that makes it fit 16 bits together with
   the `bits` that name the way back. Sums saturate at 65535, and after every eighth weight the least of them is
   subtracted. Of equal ways the lowest wins.
4. The path with the greatest <x, q>**2 / <q, q> wins, the first of equals, x being the coordinates and q the
   codebook's numbers. <x, q> / <q, q> is the least-squares scale, which is cut to the format's float.

Left out: checks of the arguments (`tq_kernels.trellis`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq_kernels.floats import narrow, widen
from tq_kernels.trellis_tables import TrellisTables
from tq_kernels.types import FloatDtype, NonFiniteWeight

UNITS = 16  # of the coordinates, in one unit of the codebook
_SIZES = (128, 64, 32, 16)
_LANES = 16
_WINDOWS = 256
_CHUNK = 2048  # groups at a time: bounds memory
# Root mean square of the codebooks that Gaussian weights of unit variance lead to, by bits.
_SPREAD = {2: 1.06, 3: 1.135, 4: 1.13}
# Costs: squared distances in half cells, times this / 256. Much finer ones would saturate on heavy tails, coarser ones
# lose more than 0.2 percent.
_COST = {2: 16, 3: 6, 4: 3}
_REACH = {2: 192, 3: 192, 4: 144}  # units on each side of zero that the cells cover
_ROOTS = {128: 0.08838834764831845, 64: 0.125, 32: 0.17677669529663687, 16: 0.25}  # 1 / sqrt(size)


def encode(
    weight: NDArray[Any], dtype: FloatDtype, tables: TrellisTables
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """See `tq_kernels.trellis.encode`."""
    rows, columns = weight.shape
    codes, metas, broken = [], [], np.zeros(rows, dtype=bool)
    for start, stop, size in _parts(columns):
        part = widen(np.ascontiguousarray(weight[:, start:stop]), dtype).reshape(-1, size)
        starts = range(0, max(len(part), 1), _CHUNK)
        pieces = [_encode_groups(part[first : first + _CHUNK], tables) for first in starts]
        found, meta, wrong = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        codes.append(found.reshape(rows, (stop - start) * tables.bits // 8))
        metas.append(meta.reshape(rows, (stop - start) // size))
        broken |= wrong.reshape(rows, (stop - start) // size).any(axis=1)
    if broken.any():
        raise NonFiniteWeight(int(np.argmax(broken)))
    return np.concatenate(codes, axis=1), np.concatenate(metas, axis=1)


def decode(
    codes: NDArray[np.uint8], meta: NDArray[np.int16], columns: int, tables: TrellisTables, dtype: FloatDtype
) -> NDArray[Any]:
    """See `tq_kernels.trellis.decode`."""
    parts, first = [], 0
    for start, stop, size in _parts(columns):
        count = (stop - start) // size
        stored = codes[:, start * tables.bits // 8 : stop * tables.bits // 8].reshape(-1, size * tables.bits // 8)
        numbers = meta[:, first : first + count].reshape(-1).view(np.uint16)
        parts.append(_decode_groups(stored, numbers, tables).reshape(len(codes), stop - start))
        first += count
    return narrow(np.concatenate(parts, axis=1), dtype)


def deviation(codebook: NDArray[np.int8], bits: int) -> np.float32:
    """What coordinates of unit variance are multiplied by: the codebook's standard deviation in 1/16 units."""
    square = int((codebook.astype(np.int64) ** 2).sum())
    return np.float32(UNITS * np.sqrt(square / _WINDOWS) / _SPREAD[bits])


def multipliers(scales: tuple[float, ...], bits: int) -> NDArray[np.int16]:
    """The multipliers that turn coordinates into 2**16 times cells."""
    found: NDArray[np.int16] = np.rint(np.array(scales) * (1 << (bits + 10))).astype(np.int16)
    return found


def costs(codebook: NDArray[np.int8], bits: int) -> NDArray[np.uint16]:
    """uint16 (cells, 256): the cost of each window in each cell, and in the lowest bits those of the window."""
    cells = _cells(bits)
    middles = 2 * np.arange(-cells // 2, cells // 2) + 1
    squares = (middles[:, None] - (1 << (bits - 1)) * codebook.astype(np.int64)) ** 2
    further = squares - squares.min(axis=1, keepdims=True)
    cost = np.minimum((further * _COST[bits] + 128) >> 8, (1 << (16 - bits)) - 1)
    table: NDArray[np.uint16] = (cost << bits | np.arange(_WINDOWS) & ((1 << bits) - 1)).astype(np.uint16)
    return table


def _cells(bits: int) -> int:
    return 2 * _REACH[bits] << (bits - 2)


def _parts(columns: int) -> list[tuple[int, int, int]]:
    """(first column, column behind the last, group size) of each run of groups of one size."""
    whole = columns - columns % _SIZES[0]
    parts = [(0, whole, _SIZES[0])] if whole else []
    for size in _SIZES[1:]:
        if columns % _SIZES[0] & size:
            parts.append((whole, whole + size, size))
            whole += size
    return parts


def _encode_groups(
    values: NDArray[np.float32], tables: TrellisTables
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    """Codes (groups, bytes), group numbers and which groups cannot be encoded."""
    bits, size = tables.bits, values.shape[1]
    broken = np.logical_not(np.isfinite(values).all(axis=1))
    values = np.where(broken[:, None], np.float32(0), values)
    coordinates, inverse, exponents = _normalised(values, tables)
    table = costs(tables.codebook, bits)
    windows, scale = np.zeros(values.shape, np.uint8), np.zeros(len(values))
    best = np.zeros(len(values))
    for multiplier in multipliers(tables.scales, bits):
        cells = (coordinates * np.int32(multiplier) >> 16).clip(-_cells(bits) // 2, _cells(bits) // 2 - 1)
        found = _path(cells + _cells(bits) // 2, table, bits)
        numbers = tables.codebook[found].astype(np.int32)
        product, square = (coordinates * numbers).sum(axis=1), (numbers * numbers).sum(axis=1)
        gain = np.divide(product.astype(float) ** 2, square, out=np.zeros(len(values)), where=product > 0)
        better = gain > best
        best[better], windows[better] = gain[better], found[better]
        scale[better] = product[better] / square[better]
    scale = scale / inverse.astype(np.float64)
    if tables.signs is not None:
        scale = scale * _ROOTS[size]
    field = _field(np.ldexp(scale, exponents), bits)
    broken |= field >= 31 << (bits + 3)
    windows[field == 0] = 0
    start = windows[:, 0] & np.uint8((1 << (8 - bits)) - 1)
    meta = (field | start.astype(np.int64) << (bits + 8)).astype(np.uint16)
    return _packed(windows >> np.uint8(8 - bits), bits), meta.view(np.int16), broken


def _normalised(
    values: NDArray[np.float32], tables: TrellisTables
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """Integer coordinates, the factor that made them, and the exponents taken out before."""
    size = values.shape[1]
    exponents = _exponents(np.abs(values).max(axis=1))
    with np.errstate(under="ignore"):
        values = np.ldexp(values, -exponents[:, None])
    if tables.signs is not None:
        values = _transform(values * tables.signs[:size])
    squares = (values * values).reshape(len(values), size // _LANES, _LANES)
    total = squares[:, 0]
    for row in range(1, squares.shape[1]):
        total = total + squares[:, row]
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    mean = total[:, 0] * np.float32(1 / size)
    zero = mean == 0
    inverse = deviation(tables.codebook, tables.bits) / np.sqrt(np.where(zero, np.float32(1), mean))
    coordinates = np.rint(values * inverse[:, None]).astype(np.int32)
    return coordinates, inverse.astype(np.float32, copy=False), exponents


def _path(cells: NDArray[np.int32], table: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """The windows of the cheapest path through each row of cells."""
    groups, size = cells.shape
    states, ways = 1 << (8 - bits), 1 << bits
    low = np.uint16(ways - 1)
    best = np.zeros((groups, 1, states), np.uint16)
    back = np.empty((size, groups, states), np.uint8)
    for place in range(size):
        cost = table[cells[:, place]].reshape(groups, ways, states)
        sums = np.minimum(best, np.uint16(0xFFFF) - cost) + cost
        least = sums.reshape(groups, states, ways).min(axis=2)
        back[place] = least & low
        least &= ~low
        if place % 8 == 7:
            least -= least.min(axis=1, keepdims=True)
        best = least[:, None]
    windows = np.empty((groups, size), np.uint8)
    state, every = best[:, 0].argmin(axis=1), np.arange(groups)
    for place in reversed(range(size)):
        window = state << bits | back[place, every, state]
        windows[:, place] = window
        state = window & (states - 1)
    return windows


def _exponents(values: NDArray[Any]) -> NDArray[np.int32]:
    """The powers of two at or below positive values; that of 0 is very small."""
    exponents: NDArray[np.int32] = np.frexp(values)[1] - 1
    return np.where(values == 0, np.int32(-200), exponents)


def _field(scale: NDArray[np.float64], bits: int) -> NDArray[np.int64]:
    """Scales -> the format's floats: those of half precision of 2**16 times the scale, cut to nearest even."""
    mantissa = bits + 3
    quantum = np.maximum(_exponents(scale) + 16, -14) - mantissa
    steps = np.rint(np.ldexp(scale, 16 - quantum)).astype(np.int64)
    field: NDArray[np.int64] = steps + (quantum + 14 + mantissa << mantissa)
    return np.minimum(field, 31 << mantissa)


def _decode_groups(codes: NDArray[np.uint8], numbers: NDArray[np.uint16], tables: TrellisTables) -> NDArray[np.float32]:
    bits, size = tables.bits, codes.shape[1] * 8 // tables.bits
    stream = np.concatenate([numbers.astype("<u2").view(np.uint8).reshape(-1, 2), codes], axis=1)
    every_bit = np.unpackbits(stream, axis=1, bitorder="little")
    places = 8 + bits + bits * np.arange(size)[:, None] + np.arange(8)
    windows = np.packbits(every_bit[:, places], axis=2, bitorder="little")[..., 0]
    values = tables.codebook[windows].astype(np.float32)
    half = ((numbers & np.uint16((1 << (8 + bits)) - 1)) << np.uint16(7 - bits)).view(np.float16)
    with np.errstate(invalid="ignore", over="ignore"):
        factor = half.astype(np.float32) * np.float32(2.0**-16)
        if tables.signs is None:
            return values * factor[:, None]
        factor = factor * np.float32(_ROOTS[size])
        return _transform(values) * factor[:, None] * tables.signs[:size]


def _packed(symbols: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The lowest `bits` bits of each symbol one after another, lowest first."""
    every_bit = np.unpackbits(symbols[..., None], axis=2, bitorder="little")[..., :bits]
    return np.packbits(every_bit.reshape(len(symbols), symbols.shape[1] * bits), axis=1, bitorder="little")


def _transform(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The Walsh-Hadamard transform of the last axis without a factor, distances 1, 2, 4, ..."""
    shape, distance = values.shape, 1
    while distance < shape[1]:
        pairs = values.reshape(shape[0], shape[1] // (2 * distance), 2, distance)
        left, right = pairs[:, :, 0], pairs[:, :, 1]
        values = np.stack([left + right, left - right], axis=2).reshape(shape)
        distance *= 2
    return values
