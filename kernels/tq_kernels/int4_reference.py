"""INT4 weights in plain NumPy: what every native kernel must equal, and what runs where there is none.

Sums run through a group from its first weight to its last, one addition a weight, as the native kernels' lanes do.
Left out: the checks of what is given, which tq_kernels.int4 makes, and the rules, which it tells.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tq_kernels.floats import narrow, rounded, widen
from tq_kernels.types import FloatDtype, NonFiniteWeight

_EPSILON: dict[FloatDtype, float] = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23}
_TOO_LARGE: dict[FloatDtype, float] = {"BF16": 2.0**127, "F16": 2.0**15, "F32": 2.0**127}
_SHARES = [np.float32(share) / np.float32(48) for share in range(50, 35, -1)]
_SHIFTS = np.arange(0, 32, 4, dtype=np.uint32)

_Floats = NDArray[np.float32]


def encode(
    weight: NDArray[Any], dtype: FloatDtype, group_size: int, scale: Literal["absmax", "search", "signed"]
) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """As tq_kernels.int4.encode."""
    rows, columns = weight.shape
    values = widen(weight, dtype)
    accepted = np.abs(values) < _TOO_LARGE[dtype]
    if not accepted.all():
        raise NonFiniteWeight(int(np.argmin(accepted.all(axis=1))))
    groups = values.reshape(rows, columns // group_size, group_size)
    with np.errstate(all="ignore"):
        scales = _absmax_scale(groups, dtype) if scale == "absmax" else _searched_scale(groups, dtype, scale)
        quotients: NDArray[Any] = groups / scales[..., None]
    if scale == "absmax":
        quotients = rounded(quotients, dtype)
    numbers = np.rint(_clamped(quotients)).astype(np.int32) + 8
    parts = numbers.reshape(rows, columns // 8, 8).astype(np.uint32) << _SHIFTS
    words = np.bitwise_or.reduce(parts, axis=-1).view(np.int32)
    return words, narrow(scales, dtype)


def decode(words: NDArray[np.int32], scales: NDArray[Any], dtype: FloatDtype, group_size: int) -> NDArray[np.float32]:
    """As tq_kernels.int4.decode; dtype is that of the scales."""
    rows, columns = len(words), words.shape[1] * 8
    numbers = (words.view(np.uint32)[..., None] >> _SHIFTS & np.uint32(15)).astype(np.float32) - np.float32(8)
    groups = numbers.reshape(rows, columns // group_size, group_size)
    weight: NDArray[np.float32] = (groups * widen(scales, dtype)[..., None]).reshape(rows, columns)
    return weight


def _absmax_scale(groups: _Floats, dtype: FloatDtype) -> _Floats:
    scales = rounded(np.abs(groups).max(axis=-1) / np.float32(7.5), dtype)
    return np.where(scales == 0, np.float32(_EPSILON[dtype]), scales)


def _searched_scale(groups: _Floats, dtype: FloatDtype, scale: Literal["search", "signed"]) -> _Floats:
    above, below = (np.maximum(side, 0).max(axis=-1) for side in (groups, -groups))
    absmax = np.maximum(above, below)
    inverse = np.float32(1) / absmax
    signed = scale == "signed"
    whole = absmax / np.float32(8) if signed else np.maximum(above / np.float32(7), below / np.float32(8))
    sign = np.where(signed & (above > below), np.float32(-1), np.float32(1))
    best = _absmax_scale(groups, dtype)
    least = _error(groups, best, inverse)
    for share in _SHARES:
        candidate = sign * rounded(whole * share, dtype)
        error = _error(groups, candidate, inverse)
        better = error < least
        best, least = np.where(better, candidate, best), np.where(better, error, least)
    return best


def _error(groups: _Floats, scales: _Floats, inverse: _Floats) -> _Floats:
    """The squared error of each group in units of the square of its greatest magnitude."""
    values = groups * (np.float32(1) / scales)[..., None]
    squares = (values - np.rint(_clamped(values))) ** 2
    total = np.zeros_like(scales)
    for place in range(groups.shape[-1]):
        total = total + squares[..., place]
    ratio = scales * inverse
    error: _Floats = total * (ratio * ratio)
    return error


def _clamped(values: _Floats) -> _Floats:
    """To -8..7, by comparisons that NaN fails, as the native kernels make them."""
    low, high = np.float32(-8), np.float32(7)
    lifted = np.where(values > low, values, low)
    return np.where(lifted < high, lifted, high)
