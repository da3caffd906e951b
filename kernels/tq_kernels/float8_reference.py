"""FP8 E4M3 weights in plain NumPy: what every native kernel must equal, and what runs where there is none.

Codes are found by searching the list of numbers that E4M3 has, so that nothing is shared with the native kernels'
arithmetic on bits. Left out: the checks of what is given, which tq_kernels.float8 makes.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tq_kernels.floats import narrow, rounded, widen
from tq_kernels.types import FloatDtype, NonFiniteWeight

_GREATEST = np.float32(448)
_EPSILON: dict[FloatDtype, float] = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23}
_SIGN = np.uint8(0x80)


def encode(
    weight: NDArray[Any], dtype: FloatDtype, block: tuple[int, int], division: Literal["float32", "weight"]
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """As tq_kernels.float8.encode."""
    values = widen(weight, dtype)
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        raise NonFiniteWeight(int(np.argmax(broken)))
    magnitudes = np.abs(values)
    scales = _scales(_greatest(magnitudes, block), dtype)
    quotients: NDArray[Any] = magnitudes / _spread(widen(scales, dtype), weight.shape, block)
    if division == "weight":
        quotients = rounded(quotients, dtype)
    codes = np.searchsorted(_boundaries(), quotients).astype(np.uint8)
    return np.where(np.signbit(values), codes | _SIGN, codes), scales


def decode(
    codes: NDArray[np.uint8], scales: NDArray[Any], dtype: FloatDtype, block: tuple[int, int]
) -> NDArray[np.float32]:
    """As tq_kernels.float8.decode; dtype is that of the scales."""
    positive = np.append(_numbers(), np.float32(np.nan))
    values = np.concatenate([positive, -positive])[codes]
    weight: NDArray[np.float32] = values * _spread(widen(scales, dtype), codes.shape, block)
    return weight


def _numbers() -> NDArray[np.float32]:
    """The 127 numbers that E4M3 has and that are not negative, by code: 0 to 448."""
    codes = np.arange(127)
    exponents, significands = codes >> 3, codes & 7
    small, normal = significands * 2.0**-9, (8 + significands) * 2.0 ** (exponents - 10)
    return np.where(exponents == 0, small, normal).astype(np.float32)


def _boundaries() -> NDArray[np.float32]:
    """The greatest float32 that each code but the last stands for: a number halfway goes to the even code."""
    numbers = _numbers()
    halfway = (numbers[:-1] + numbers[1:]) / 2
    return np.where(np.arange(126) % 2 == 0, halfway, np.nextafter(halfway, np.float32(0)))


def _greatest(magnitudes: NDArray[np.float32], block: tuple[int, int]) -> NDArray[np.float32]:
    rows, columns = magnitudes.shape
    down = np.maximum.reduceat(magnitudes, np.arange(0, rows, block[0]), axis=0)
    across: NDArray[np.float32] = np.maximum.reduceat(down, np.arange(0, columns, block[1]), axis=1)
    return across


def _scales(greatest: NDArray[np.float32], dtype: FloatDtype) -> NDArray[Any]:
    scales = narrow(greatest / _GREATEST, dtype)
    return np.where(scales == 0, narrow(np.array(_EPSILON[dtype], np.float32), dtype), scales)


def _spread(scales: NDArray[np.float32], shape: tuple[int, ...], block: tuple[int, int]) -> NDArray[np.float32]:
    """The scale of every weight."""
    rows, columns = np.arange(shape[0]) // block[0], np.arange(shape[1]) // block[1]
    return scales[rows][:, columns]
