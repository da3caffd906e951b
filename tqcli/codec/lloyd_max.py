"""Quantisation levels for a standard normal variable, frozen as literals.

The native format was defined by a program: exactly 100 Lloyd iterations in double precision from the quantiles. At 3
bits they converge; at 4 bits they do not, and a textbook table would give other bytes. The numbers are written out
here so that no version of a mathematics library can change a checkpoint; a test derives them again. At 2 bits the
format's levels are the rounded numbers below.
"""

import math

import numpy as np
from numpy.typing import NDArray

POSITIVE_LEVELS: dict[int, tuple[float, ...]] = {
    2: (0.453, 1.51),
    3: (0.24509395640535847, 0.75600467351485, 1.3439084494034657, 2.15194488612536),
    4: (
        0.12596289635857577,
        0.3809324297877438,
        0.6454862380756213,
        0.9277413166774157,
        1.2393786501512873,
        1.6001883200982845,
        2.0515376438887096,
        2.7171369153166394,
    ),
}


def centroids(bits: int, group_size: int) -> NDArray[np.float32]:
    """The levels of a coordinate of a unit vector of `group_size` numbers: float32 (2**bits,), ascending."""
    positive = np.array(POSITIVE_LEVELS[bits], dtype=np.float64)
    levels = np.concatenate([-positive[::-1], positive]) / math.sqrt(group_size)
    return levels.astype(np.float32)


def boundaries(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The midpoints between neighbouring levels: float32 (len(levels) - 1,)."""
    return ((levels[:-1] + levels[1:]) / np.float32(2)).astype(np.float32)
