"""FP4 E2M1 weights in plain NumPy: what every native kernel must equal, and what runs where there is none.

Numbers are found by searching lists of what E2M1 and E4M3 have, and exponents by frexp, so that nothing is shared
with the native kernels' arithmetic on bits. Left out: the checks of what is given, which tq_kernels.float4 makes, and
the rules, which it tells.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tq_kernels.floats import rounded, widen
from tq_kernels.types import FloatDtype, NonFiniteWeight

_GROUPS = {"mx": 32, "nv": 16}
_NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_SIGN = np.uint8(8)
# The exponents of each dtype's least normal number and of the power of two that is too great for it.
_EXPONENTS: dict[FloatDtype, tuple[int, int]] = {"BF16": (-126, 128), "F16": (-14, 16), "F32": (-126, 128)}
# The least magnitude of each dtype that is not zero; half of it rounds to zero and loses its sign.
_LEAST: dict[FloatDtype, float] = {"BF16": 2.0**-133, "F16": 2.0**-24, "F32": 0.0}

_Floats = NDArray[np.float32]


def global_scale(absmax: float, dtype: FloatDtype) -> float:
    """As tq_kernels.float4.global_scale."""
    if absmax == 0:
        return 1.0
    least = float(np.finfo(np.float16 if dtype == "F16" else np.float32).tiny)
    reciprocal = rounded(np.float32(1) / np.array([max(absmax, least)], np.float32), dtype)
    with np.errstate(over="ignore"):
        exact = np.float32(448 * 6) * reciprocal
        stored = rounded(exact, dtype)
    if np.isfinite(stored[0]):
        return float(stored[0])
    return float(exact[0]) if dtype == "F16" else 1.0


def encode(
    weight: NDArray[Any], dtype: FloatDtype, kind: Literal["mx", "nv"], global_scale: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """As tq_kernels.float4.encode."""
    rows, columns = weight.shape
    values = widen(weight, dtype)
    groups = values.reshape(rows, columns // _GROUPS[kind], _GROUPS[kind])
    absmax = np.abs(groups).max(axis=-1)
    refused = ~np.isfinite(absmax)
    with np.errstate(all="ignore"):
        if kind == "mx":
            scales, divisors, too_great = _mx_scales(np.where(refused, 0, absmax), dtype)
            refused |= too_great
        else:
            scales, divisors = _nv_scales(absmax, dtype, global_scale)
    if refused.any():
        raise NonFiniteWeight(int(np.argmax(refused.any(axis=1))))
    with np.errstate(all="ignore"):
        quotients: NDArray[Any] = groups / divisors[..., None]
    codes = np.searchsorted(_boundaries(_NUMBERS), np.abs(quotients)).astype(np.uint8)
    vanishes = np.float32(_LEAST[dtype] / 2 if kind == "mx" else 0)
    codes[quotients < -vanishes] |= _SIGN
    pairs = codes.reshape(rows, columns // 2, 2)
    return pairs[..., 0] | pairs[..., 1] << np.uint8(4), scales


def decode(
    codes: NDArray[np.uint8], scales: NDArray[np.uint8], kind: Literal["mx", "nv"], global_scale: float
) -> NDArray[np.float32]:
    """As tq_kernels.float4.decode."""
    rows, columns = len(codes), codes.shape[1] * 2
    parts = np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=-1)
    numbers = np.concatenate([_NUMBERS, -_NUMBERS])[parts].reshape(*scales.shape, _GROUPS[kind])
    float8 = _float8_numbers()
    multipliers: NDArray[Any] = (
        _powers_of_two(scales) if kind == "mx" else np.concatenate([float8, -float8])[scales] / np.float32(global_scale)
    )
    with np.errstate(all="ignore"):
        weight: NDArray[np.float32] = (numbers * multipliers[..., None]).reshape(rows, columns)
    return weight


def _mx_scales(absmax: _Floats, dtype: FloatDtype) -> tuple[NDArray[np.uint8], _Floats, NDArray[np.bool_]]:
    """Scales, what they divide by, and where a scale has no place in the dtype."""
    lowest, beyond = _EXPONENTS[dtype]
    fractions, exponents = np.frexp(absmax.astype(np.float64))
    raised = exponents - 1 + (fractions >= 0.875)
    # Denormals count as the integers that they are stored as: three quarters of the least normal number become it.
    denormal = absmax < 2.0**lowest
    raised = np.where(denormal, lowest, raised)
    void = absmax < 0.75 * 2.0**lowest
    stored = np.where(void, 127 if dtype == "F16" else 0, np.maximum(raised + 125, 0)).astype(np.uint8)
    return stored, _powers_of_two(stored), ~void & (raised >= beyond)


def _nv_scales(absmax: _Floats, dtype: FloatDtype, global_scale: float) -> tuple[NDArray[np.uint8], _Floats]:
    scaled = np.float32(global_scale) * rounded(absmax / np.float32(6), dtype)
    codes = np.searchsorted(_boundaries(_float8_numbers()[:127]), scaled).astype(np.uint8)
    numbers = _float8_numbers()
    stored = np.where(codes == 0, np.uint8(np.searchsorted(numbers[:127], 0.125)), codes)
    return stored, numbers[stored] / np.float32(global_scale)


def _powers_of_two(stored: NDArray[np.uint8]) -> _Floats:
    with np.errstate(over="ignore"):
        return np.exp2(stored.astype(np.float64) - 127).astype(np.float32)


def _float8_numbers() -> _Floats:
    """What the codes 0 to 127 of E4M3 stand for: 0 to 448, and 480 where the others have NaN, which no scale is."""
    codes = np.arange(128)
    exponents, significands = codes >> 3, codes & 7
    small, normal = significands * 2.0**-9, (8 + significands) * 2.0 ** (exponents - 10)
    return np.where(exponents == 0, small, normal).astype(np.float32)


def _boundaries(numbers: _Floats) -> _Floats:
    """The greatest float32 that each code but the last stands for: a number halfway goes to the even code."""
    halfway = (numbers[:-1] + numbers[1:]) / 2
    return np.where(np.arange(len(halfway)) % 2 == 0, halfway, np.nextafter(halfway, np.float32(0)))
