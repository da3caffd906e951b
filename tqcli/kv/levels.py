"""Lloyd-Max levels of a standard normal variable for 2 to 8 bits, and the error that they leave.

A cache lives in memory only, so unlike a checkpoint's the levels need not be frozen as literals: they are computed once
a process. The iteration starts from the levels that are best in the limit of many bits (Panter and Dite 1951: the
density's cube root, again a normal one of variance 3): from there 200 steps come within 0.03 % of the optimum at every
width, which Lloyd's steps from another start do not at 8 bits.
"""

import math
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

_STEPS = 200
_NORMAL = NormalDist()


@lru_cache(maxsize=8)
def levels(bits: int) -> tuple[float, ...]:
    """The 2**bits levels, ascending and symmetric about zero."""
    count = 2**bits
    wide = NormalDist(0.0, math.sqrt(3))
    found = [wide.inv_cdf((index + 0.5) / count) for index in range(count)]
    for _ in range(_STEPS):
        found = _means(boundaries(found))
    # Rounding may break the symmetry in the last place.
    half = [(high - low) / 2 for low, high in zip(found, reversed(found), strict=True)][: count // 2]
    return tuple([-value for value in half] + half[::-1])


def boundaries(values: tuple[float, ...] | list[float]) -> list[float]:
    """The midpoints between neighbouring levels."""
    return [(low + high) / 2 for low, high in pairwise(values)]


@lru_cache(maxsize=8)
def squared_error(bits: int) -> float:
    """The mean squared error of a standard normal variable that is rounded to the nearest of `levels(bits)`."""
    values = levels(bits)
    inner = boundaries(values)
    edges = [-math.inf, *inner, math.inf]
    shares = [_NORMAL.cdf(high) - _NORMAL.cdf(low) for low, high in pairwise(edges)]
    cells = zip(shares, values, _means(inner), strict=True)
    return 1.0 + sum(share * (value * value - 2 * value * mean) for share, value, mean in cells)


def _means(inner: list[float]) -> list[float]:
    """The mean of a normal variable in each of the cells that the boundaries part."""
    edges = [-math.inf, *inner, math.inf]
    density = [0.0 if math.isinf(edge) else _NORMAL.pdf(edge) for edge in edges]
    below = [_NORMAL.cdf(edge) if edge < 0 else 1.0 - _NORMAL.cdf(-edge) for edge in edges]
    pairs = range(len(edges) - 1)
    return [(density[one] - density[one + 1]) / (below[one + 1] - below[one]) for one in pairs]
