"""Candidate scales for the `search` encoder: which grids are tried for one group of weights."""

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
