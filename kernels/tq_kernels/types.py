"""What crosses the boundary between the codec and the kernels: tables in, codes and norms out.

The kernels know no recipe, no file and no seed. Everything that a bit of the result depends on is in `TqTables`,
computed once by `tqcli.codec`, so that two backends cannot disagree about a constant.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatDtype = Literal["BF16", "F16", "F32"]
Scale = Literal["norm", "search"]


@dataclass(frozen=True, eq=False)
class TqTables:
    """Constants of one (bits, group size, seed).

    signs_in, signs_out: float32 (group_size,), +1 or -1; y = signs_out * WHT(signs_in * u) / sqrt(group_size).
    centroids: float32 (2**bits,), ascending, already divided by sqrt(group_size).
    boundaries: float32 (2**bits - 1,), the midpoints; a value equal to a boundary takes the lower index.
    search_boundaries: int16 (candidates, 2**(bits-1) - 1), positive boundaries of each candidate scale, in units of
        1/2048 of a standard deviation.
    search_centroids: int16 (2**(bits-1),), the positive centroids in units of 1/2048 of a standard deviation.
    """

    bits: int
    group_size: int
    signs_in: NDArray[np.float32]
    signs_out: NDArray[np.float32]
    centroids: NDArray[np.float32]
    boundaries: NDArray[np.float32]
    search_boundaries: NDArray[np.int16]
    search_centroids: NDArray[np.int16]


class NonFiniteWeight(ValueError):
    """A group holds NaN or Inf, or is so large that its norm overflows float32. `row` is where."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds NaN, Inf or a value too large for a float32 norm")
        self.row = row
