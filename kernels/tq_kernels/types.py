"""What crosses the boundary between the codec and the kernels: tables in, codes and norms out.

The kernels know no recipe, no file and no seed. Everything that a bit of the result depends on is in `TqTables`,
computed once by `tqcli.codec`, so that two backends cannot disagree about a constant.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatDtype = Literal["BF16", "F16", "F32"]
Scale = Literal["norm", "search"]

# The scale search counts in integers, so that its sums are exact whatever their order. A rotated weight of a group of
# 256 is at most 16 standard deviations, and the sums of 256 products then stay below 2**31.
SEARCH_UNITS = 1024


@dataclass(frozen=True, eq=False)
class TqTables:
    """Constants of one (bits, group size, seed).

    signs_in, signs_out: float32 (group_size,), +1 or -1; y = signs_out * WHT(signs_in * u) / sqrt(group_size).
    centroids: float32 (2**bits,), ascending, already divided by sqrt(group_size).
    boundaries: float32 (2**bits - 1,), the midpoints; a value equal to a boundary takes the lower index.
    search_boundaries: int16 (candidates, 2**(bits-1) - 1), positive boundaries of each candidate scale, in units of
        1/SEARCH_UNITS of a standard deviation.
    search_centroids: int16 (2**(bits-1),), the positive centroids in units of 1/SEARCH_UNITS of a standard deviation.
    """

    bits: int
    group_size: int
    signs_in: NDArray[np.float32]
    signs_out: NDArray[np.float32]
    centroids: NDArray[np.float32]
    boundaries: NDArray[np.float32]
    search_boundaries: NDArray[np.int16]
    search_centroids: NDArray[np.int16]

    def __post_init__(self) -> None:
        """ValueError unless every array has the stated type, shape and layout: native code trusts them."""
        levels = 1 << self.bits
        expected: tuple[tuple[type[np.generic], tuple[int, ...]], ...] = (
            (np.float32, (self.group_size,)),
            (np.float32, (self.group_size,)),
            (np.float32, (levels,)),
            (np.float32, (levels - 1,)),
            (np.int16, (len(self.search_boundaries), levels // 2 - 1)),
            (np.int16, (levels // 2,)),
        )
        for array, (kind, shape) in zip(self.arrays(), expected, strict=True):
            if array.dtype != kind or array.shape != shape or not array.flags.c_contiguous:
                raise ValueError(f"a table must be {np.dtype(kind)} {shape}, not {array.dtype} {array.shape}")

    @property
    def bytes_per_group(self) -> int:
        """Bytes that the codes of one group take."""
        return self.bits * self.group_size // 8

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` weights."""
        return -(-columns // self.group_size)

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The six arrays, in the order of the fields."""
        return (
            self.signs_in,
            self.signs_out,
            self.centroids,
            self.boundaries,
            self.search_boundaries,
            self.search_centroids,
        )


class NonFiniteWeight(ValueError):
    """A group holds NaN or Inf, or is so large that its norm overflows float32. `row` is where."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds NaN, Inf or a value too large for a float32 norm")
        self.row = row
