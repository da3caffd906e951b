"""Uniform quantisation in plain NumPy: what every native kernel must equal, and what runs where there is none.

Sums run through a group from its first weight to its last, one addition a weight, as the native kernels' lanes do.
Left out: the checks of what is given, which tq_kernels.uniform makes, and the rules, which it tells.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tq_kernels.floats import NUMPY, narrow, widen
from tq_kernels.types import FloatDtype, NonFiniteWeight

Bits = Literal[4, 8]

_GREATEST_HALF = 65504.0
_LEAST_HALF = 2.0**-24
# Least code, greatest code.
_RANGES: dict[Bits, tuple[int, int]] = {8: (-127, 127), 4: (-8, 7)}
# What a group's greatest magnitude is divided by: first the rule of absmax, then what the search tries.
_DIVISORS: dict[Bits, list[float]] = {
    8: [127 - step / 2 for step in range(16)],
    4: [8.0] + [7 + step / 4 for step in range(1, 17) if step != 4],
}

_Floats = NDArray[np.float32]


def encode(
    weight: NDArray[Any], dtype: FloatDtype, bits: Bits, group_size: int, scale: Literal["absmax", "search"]
) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """As tq_kernels.uniform.encode."""
    rows, columns = weight.shape
    groups = _grouped(widen(weight, dtype), group_size)
    magnitudes = np.abs(groups).max(axis=-1)
    accepted = (magnitudes <= greatest_magnitude(dtype, bits)).all(axis=1)
    if not accepted.all():
        raise NonFiniteWeight(int(np.argmin(accepted)))
    above = np.maximum(groups, 0).max(axis=-1)
    sign = np.where((above > np.maximum(-groups, 0).max(axis=-1)) & (bits == 4), np.float32(-1), np.float32(1))
    scales = sign * _scale(groups, magnitudes, sign, bits, scale)
    numbers = _nearest(groups / scales[..., None], bits).astype(np.int8)
    codes = np.ascontiguousarray(numbers.reshape(rows, groups.shape[1] * group_size)[:, :columns])
    return (_packed(codes) if bits == 4 else codes), scales.astype(np.float16)


def decode(
    codes: NDArray[Any],
    scales: NDArray[np.float16],
    columns: int,
    bits: Bits,
    group_size: int,
    dtype: FloatDtype,
) -> NDArray[Any]:
    """As tq_kernels.uniform.decode."""
    numbers = _unpacked(codes)[:, :columns] if bits == 4 else codes
    each = np.repeat(scales.astype(np.float32), group_size, axis=1)[:, :columns]
    with np.errstate(invalid="ignore"):
        values: _Floats = numbers.astype(np.float32) * each
    weight = narrow(values, dtype)
    # BF16 is rounded by integer arithmetic, which may carry a NaN's payload out of the number.
    return np.where(np.isnan(values), np.uint16(0x7FC0), weight) if dtype == "BF16" else weight


def greatest_magnitude(dtype: FloatDtype, bits: Bits) -> float:
    """Weights beyond it are refused. F16 ones so that no decode overflows; others where the scale would, as a half."""
    return 32752.0 if NUMPY[dtype] == np.float16 else _GREATEST_HALF * _DIVISORS[bits][0]


def _grouped(values: _Floats, group_size: int) -> _Floats:
    """(rows, columns) -> (rows, groups, group_size), the last group of a row filled with zeros."""
    rows, columns = values.shape
    padded = np.pad(values, ((0, 0), (0, -columns % group_size)))
    return padded.reshape(rows, padded.shape[1] // group_size, group_size)


def _scale(
    groups: _Floats, magnitudes: _Floats, sign: _Floats, bits: Bits, scale: Literal["absmax", "search"]
) -> _Floats:
    """The magnitude of each group's scale."""
    first, *others = _DIVISORS[bits]
    best = _half_above(magnitudes / np.float32(first))
    if scale == "absmax":
        return best
    least = _error(groups, sign * best, bits)
    for divisor in others:
        candidate = _half_above(magnitudes / np.float32(divisor))
        error = _error(groups, sign * candidate, bits)
        better = error < least
        best, least = np.where(better, candidate, best), np.where(better, error, least)
    return best


def _half_above(values: _Floats) -> _Floats:
    """The least half that is not below a value, 2**-24 to 65504. Values are not negative."""
    halves = np.minimum(values, np.float32(_GREATEST_HALF)).astype(np.float16)
    short = halves.astype(np.float32) < np.minimum(values, np.float32(_GREATEST_HALF))
    above = (halves.view(np.uint16) + short.astype(np.uint16)).view(np.float16).astype(np.float32)
    return np.maximum(above, np.float32(_LEAST_HALF))


def _nearest(quotients: _Floats, bits: Bits) -> _Floats:
    low, high = _RANGES[bits]
    return np.clip(np.rint(quotients), np.float32(low), np.float32(high))


def _error(groups: _Floats, scales: _Floats, bits: Bits) -> _Floats:
    """The squared error of each group, from quotients by way of the scale's reciprocal."""
    quotients = groups * (np.float32(1) / scales)[..., None]
    squares = (quotients - _nearest(quotients, bits)) ** 2
    total = np.zeros_like(scales)
    for place in range(groups.shape[-1]):
        total = total + squares[..., place]
    error: _Floats = total * (scales * scales)
    return error


def _packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes a byte, the first in the low half; a last one alone has zeros above it."""
    nibbles = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).view(np.uint8) & np.uint8(15)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)


def _unpacked(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """(rows, bytes) -> (rows, 2 * bytes), -8 to 7."""
    nibbles = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(
        len(packed), 2 * packed.shape[1]
    )
    return (nibbles ^ np.uint8(8)).view(np.int8) - np.int8(8)
