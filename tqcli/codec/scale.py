"""Candidate scales for the `search` encoder: which grids are tried for one group of weights.

The levels suit a group whose rotated weights look like a normal sample. A finite group never quite does, and a grid
stretched or shrunk a little, followed by a least-squares norm, lies closer to it. The encoder tries every candidate
and keeps the one whose reconstruction projects furthest on the group. For one grid the nearest level is the best
choice, so the scale is all there is to search.

Gain in relative squared error over scale "norm" at group 128 (normal weights / Student t with 4 degrees / a small
trained model), with the scales below and, in brackets, with 91 scales from 0.60 to 1.50:

    2 bits    3.9 / 3.9 / 3.9 %      (3.9 / 3.9 / 3.9 %)       7 scales
    3 bits    6.3 / 6.6 / 6.3 %      (6.5 / 6.8 / 6.5 %)      11 scales
    4 bits   14.8 / 14.7 / 14.4 %    (15.6 / 15.5 / 15.2 %)   11 scales

The best scale of a group lies between about 0.80 and 1.32 for 98 % of the groups at 3 bits, 0.74 and 1.33 at 4 bits.
Seven scales from 0.85 to 1.15 gain 6.0 % and 13.5 %; sixteen from 0.70 to 1.30 gain 6.4 % and 15.2 % but take half as
long again. The plain grid, 1.0, is always among them, so that no whole group ends up worse than with "norm". The
error counted is that of whole groups: the padding of a short last group is fitted along with its weights.
"""

import numpy as np
from numpy.typing import NDArray
from tq_kernels.types import SEARCH_UNITS

from tqcli.codec.lloyd_max import POSITIVE_LEVELS

CANDIDATES: dict[int, tuple[float, ...]] = {
    2: (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15),
    3: (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25),
    4: (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25),
}


def search_centroids(bits: int) -> NDArray[np.int16]:
    """The positive levels in units of 1/SEARCH_UNITS of a standard deviation: int16 (2**(bits-1),)."""
    return _in_units(np.array(POSITIVE_LEVELS[bits]))


def search_boundaries(bits: int) -> NDArray[np.int16]:
    """The midpoints between positive levels, times each candidate: int16 (candidates, 2**(bits-1) - 1)."""
    levels = np.array(POSITIVE_LEVELS[bits])
    midpoints = (levels[:-1] + levels[1:]) / 2
    return _in_units(np.outer(CANDIDATES[bits], midpoints))


def _in_units(values: NDArray[np.float64]) -> NDArray[np.int16]:
    rounded: NDArray[np.int16] = np.rint(values * SEARCH_UNITS).astype(np.int16)
    return rounded
