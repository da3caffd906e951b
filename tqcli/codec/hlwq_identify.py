"""Proves which table of levels an HLWQ file was made with, from some rows of the weight that it was made from.

A file stores indices but no levels. Where neighbouring indices meet, the weights themselves show the boundary: it lies
between the largest value that took the lower index and the smallest that took the upper one. The tables' midpoints
differ by up to 0.13 there, so a few rows decide. Left out: reading files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tq_kernels import hlwq
from tq_kernels.hlwq_reference import normalised
from tq_kernels.types import FloatDtype

from tqcli.codec.hlwq_tables import TABLES, Table, midpoints

# Other programs add in another order: their values differ from ours by a few units in the last place.
_ROUNDING = np.float32(2.0**-19)


@dataclass(frozen=True, eq=False)
class Boundaries:
    """Where the boundaries between indices can lie, given the weights seen so far.

    above: float32 (2**bits - 1,), the largest value with an index up to k; -inf where none was seen.
    below: float32 (2**bits - 1,), the smallest value with an index over k; inf where none was seen.
    """

    above: NDArray[np.float32]
    below: NDArray[np.float32]

    def joined(self, other: "Boundaries") -> "Boundaries":
        """What both have seen."""
        return Boundaries(np.maximum(self.above, other.above), np.minimum(self.below, other.below))

    def contradicted(self, candidate: NDArray[np.float32]) -> int:
        """How many of the candidate's midpoints, float32 (2**bits - 1,), lie where they cannot."""
        slack = _ROUNDING * np.maximum(np.abs(candidate), np.float32(1))
        return int(np.count_nonzero((candidate < self.above - slack) | (candidate > self.below + slack)))


def boundaries(weight: NDArray[Any], dtype: FloatDtype, indices: NDArray[np.uint8], bits: int) -> Boundaries:
    """What some rows show.

    weight: (rows, columns), uint16 for BF16, float16 for F16, float32 for F32; indices: uint8 of any shape with
    rows * blocks * 128 entries, unpacked. Raises ValueError where the sizes do not fit, NonFiniteWeight as encoding.
    """
    values, _ = normalised(weight, dtype)
    if indices.size != values.size:
        raise ValueError(f"{values.size} weights with their padding, but {indices.size} indices")
    flat = indices.reshape(-1)
    if flat.size and int(flat.max()) >= 1 << bits:
        raise ValueError(f"index {int(flat.max())} has more than {bits} bits")
    largest = np.full(1 << bits, -np.inf, dtype=np.float32)
    smallest = np.full(1 << bits, np.inf, dtype=np.float32)
    np.maximum.at(largest, flat, values.reshape(-1))
    np.minimum.at(smallest, flat, values.reshape(-1))
    return Boundaries(np.maximum.accumulate(largest)[:-1], np.minimum.accumulate(smallest[::-1])[::-1][1:])


def contradictions(seen: Boundaries) -> Mapping[Table, int]:
    """For each known table of that width, how many of its midpoints contradict the weights."""
    bits = len(seen.above).bit_length()
    if bits not in hlwq.BITS or len(seen.above) != (1 << bits) - 1:
        raise ValueError(f"{len(seen.above)} boundaries are not those of a table")
    return {table: seen.contradicted(midpoints(table, bits)) for table in TABLES}


def which_table(seen: Boundaries) -> Table | None:
    """The one table that does not contradict the weights. None: more rows are needed, or no known table made them."""
    fitting = [table for table, count in contradictions(seen).items() if count == 0]
    return fitting[0] if len(fitting) == 1 else None
