"""Products of packed weights in NumPy: the arithmetic that every backend gives to the bit.

All floating point is float32, each operation rounded once. Of each token, for each group of n columns:

1. x times signs_before, Walsh-Hadamard transformed at distances 1, 2, 4, ..., each pair (a, b) becoming (a + b, a - b),
   times signs_after; x as it is where the format has no rotation. Columns that a padded group lacks are zeros.
2. m is the greatest magnitude, n is 127 for 8 bits and 127 * 255 for 16. The whole numbers are x * (n / m), rounded to
   nearest even; the scale is m / n, times the format's factor. m below 2**-100 counts as zero: numbers and scale are 0.
   Where m is infinite or NaN, numbers are 0 and the scale is NaN, so that the results are.

Of each row, by lanes: for each group, in order, the products of the weights' whole numbers with those of the token are
added up, without rounding, in 16 lanes: column c of the group in lane c % 64 // 4. Each lane's sum, as float32, is
multiplied with the product of the weights' scale and the activations', and added to the row's lane. At last lanes l and
l + 8 are added, of the results l and l + 4, then 2, 1. By groups: the same with one lane for all columns. A result that
is NaN is the plain quiet one. Left out: speed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq_kernels.product_formats import SIZES, ProductFormat, row_layout

# Of four columns of each 64.
LANES = {"lanes": 16, "groups": 1}
# Sixteen bits are 255 times a byte plus another, each from -127 to 127.
GREATEST = {8: 127, 16: 127 * 255}
_NEGLIGIBLE = np.float32(2.0**-100)


def product(
    weights: ProductFormat,
    codes: NDArray[Any],
    scales: NDArray[Any],
    activations: NDArray[np.float32],
    matrices: int,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    activation_bits: int,
    order: str = "lanes",
) -> NDArray[np.float32]:
    """(pairs, rows): matrix pairs[0][p] times token pairs[1][p]; see `tq_kernels.product.product`."""
    rows = len(scales) // matrices
    results = np.empty((len(pairs[0]), rows), np.float32)
    by_matrix = codes.reshape(matrices, rows, -1), scales.reshape(matrices, rows, -1)
    for result, matrix, token in zip(results, *pairs, strict=True):
        stored = by_matrix[0][matrix], by_matrix[1][matrix]
        result[:] = _one(weights, *stored, activations[token], GREATEST[activation_bits], LANES[order])
    return results


def _one(
    weights: ProductFormat,
    codes: NDArray[Any],
    scales: NDArray[Any],
    activations: NDArray[np.float32],
    greatest: int,
    count: int,
) -> NDArray[np.float32]:
    lanes = np.zeros((len(codes), count), np.float32)
    column = 0
    factors = _scales(weights, scales)
    with np.errstate(all="ignore"):
        for group, size in enumerate(row_layout(weights, len(activations)).sizes):
            begin = column * weights.bits // 8
            stored = codes[:, begin : begin + -(-size * weights.bits // 8)]
            numbers = _numbers(weights, stored, scales[:, group], size)
            values, scale = _whole(weights, activations[column : column + size], size, np.float32(greatest))
            products = np.zeros((len(codes), 128), np.int64)
            products[:, :size] = numbers.astype(np.int64) * values
            sums = products.reshape(-1, 2, count, 64 // count).sum(axis=(1, 3)).astype(np.float32)
            lanes += sums * (factors[:, group] * scale)[:, None]
            column += size
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
    return np.where(np.isnan(lanes[:, 0]), np.float32(np.nan), lanes[:, 0])


def _whole(
    weights: ProductFormat, values: NDArray[np.float32], size: int, greatest: np.float32
) -> tuple[NDArray[np.int64], np.float32]:
    """Whole numbers (size,) of a group's activations, and their scale."""
    padded = np.zeros(size, np.float32)
    padded[: len(values)] = values
    if weights.rotated:
        padded = _rotated(weights, padded)
    most = np.abs(padded).max()
    if not np.isfinite(most):
        return np.zeros(size, np.int64), np.float32(np.nan)
    if most < _NEGLIGIBLE:
        return np.zeros(size, np.int64), np.float32(0)
    numbers = np.rint(padded * (greatest / most)).astype(np.int64)
    factor = np.float32(weights.factors[sum(size <= one for one in SIZES[1:])])
    return numbers, np.float32(most / greatest * factor)


def _rotated(weights: ProductFormat, values: NDArray[np.float32]) -> NDArray[np.float32]:
    size = len(values)
    if weights.signs_before is not None:
        values = values * weights.signs_before[:size]
    distance = 1
    while distance < size:
        pairs = values.reshape(-1, 2, distance)
        values = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).reshape(-1)
        distance *= 2
    return values if weights.signs_after is None else values * weights.signs_after[:size]


def _numbers(weights: ProductFormat, codes: NDArray[Any], scales: NDArray[Any], size: int) -> NDArray[np.int8]:
    """Whole numbers (rows, size) of one group of each row."""
    if weights.codes == "bytes":
        return codes.view(np.int8)
    assert weights.table is not None  # noqa: S101  # all others have one
    stream, width, first = codes, weights.bits, 0
    if weights.codes == "trellis":
        starts = (scales.view(np.uint16) >> 8).astype(np.uint8)
        stream, width, first = np.column_stack((starts, codes)), 8, weights.bits
    bits = np.unpackbits(stream, axis=1, bitorder="little")
    places = first + weights.bits * np.arange(size)[:, None] + np.arange(width)
    found: NDArray[np.int8] = weights.table[(bits[:, places].astype(np.int64) << np.arange(width)).sum(axis=2)]
    return found


def _scales(weights: ProductFormat, scales: NDArray[Any]) -> NDArray[np.float32]:
    """As float32; trellis scales are 2**16 times too great, which the format's factors make up for."""
    if weights.scales != "trellis":
        return scales.astype(np.float32)
    fields = scales.view(np.uint16) & np.uint16((1 << (8 + weights.bits)) - 1)
    return (fields << np.uint16(7 - weights.bits)).astype(np.uint16).view(np.float16).astype(np.float32)
