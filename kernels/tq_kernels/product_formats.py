"""Formats of packed weights as products see them: codes that stand for whole numbers, scales, and a rotation.

Left out: the product itself. The formats' own pages are docs/native-format.md, trellis-format.md, uniform-format.md.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tq_kernels import trellis
from tq_kernels.types import TqTables

SIZES = (128, 64, 32, 16)
GROUP_SIZES = (128, 64, 32)

_GREATEST = 127
_LEAST_GREATEST = 64  # of the candidates for what the greatest level becomes


@dataclass(frozen=True, eq=False)
class ProductFormat:
    """How the weights of one matrix are stored.

    codes: "trellis" for windows of a bit stream, "table" for codes of `bits` bits, "bytes" for int8.
    scales: what a group's scale is stored as. tail: columns behind the last whole group are groups of 64, 32 and 16
    ("smaller"), a group padded to full size ("padded") or a short one ("short").
    table: int8, 256 by window or 2**bits by code; None for bytes. signs_before, signs_after: float32 (128,) or
    (group_size,), of the rotation of activations; None for ones. factors: float32 by which scales are multiplied, for
    groups of 128, 64, 32 and 16 columns.
    """

    codes: Literal["trellis", "table", "bytes"]
    scales: Literal["trellis", "float32", "float16"]
    tail: Literal["smaller", "padded", "short"]
    bits: int
    group_size: int
    rotated: bool
    table: NDArray[np.int8] | None
    signs_before: NDArray[np.float32] | None
    signs_after: NDArray[np.float32] | None
    factors: tuple[float, float, float, float]

    def arrays(self) -> tuple[NDArray[Any] | None, ...]:
        """Those that native code reads."""
        return self.table, self.signs_before, self.signs_after


@dataclass(frozen=True)
class RowLayout:
    """What a row takes: dtypes, bytes of codes, number of groups, and the columns of each."""

    codes: np.dtype[Any]
    scales: np.dtype[Any]
    code_bytes: int
    groups: int
    sizes: tuple[int, ...]


def of_trellis(tables: trellis.TrellisTables) -> ProductFormat:
    """Of the trellis format. Its scales are read 2**16 times too great."""
    rotated = tables.signs is not None
    roots = [1 / math.sqrt(size) if rotated else 1.0 for size in SIZES]
    factors = tuple(float(np.float32(root)) * 2.0**-16 for root in roots)
    return ProductFormat(
        "trellis", "trellis", "smaller", tables.bits, 128, rotated, tables.codebook, tables.signs, None, _four(factors)
    )


def of_tq(tables: TqTables) -> ProductFormat:
    """Of the native format. Levels are rounded to whole numbers: see `whole_levels`. ValueError for groups of 256."""
    _check_group(tables.group_size)
    numbers, unit = whole_levels(tables.centroids)
    factor = float(np.float32(unit / math.sqrt(tables.group_size)))
    return ProductFormat(
        "table", "float32", "padded", tables.bits, tables.group_size, True, numbers, tables.signs_in,
        tables.signs_out, (factor,) * 4,
    )  # fmt: skip


def of_uniform(bits: int, group_size: int) -> ProductFormat:
    """Of the uniform format. ValueError for groups of 256."""
    _check_group(group_size)
    factors = (1.0,) * 4
    if bits == 8:
        return ProductFormat("bytes", "float16", "short", 8, group_size, False, None, None, None, factors)
    numbers = np.array([*range(8), *range(-8, 0)], np.int8)
    return ProductFormat("table", "float16", "short", 4, group_size, False, numbers, None, None, factors)


def whole_levels(levels: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    """Whole numbers and a unit, whose products are close to the levels.

    The greatest becomes 64 to 127, whichever leaves the least squared error. 2 bits are exact; the error of 3 and 4
    bits is .0011 and .0033 of normal weights' own size, below that of activations in 8 bits (.006).
    """
    exact = levels.astype(np.float64)
    best: tuple[float, NDArray[np.int8], float] | None = None
    for greatest in range(_LEAST_GREATEST, _GREATEST + 1):
        numbers = np.rint(exact * (greatest / np.abs(exact).max()))
        unit = float(numbers @ exact / (numbers @ numbers))
        error = float(((numbers * unit - exact) ** 2).sum())
        if best is None or error < best[0]:
            best = error, numbers.astype(np.int8), unit
    assert best is not None  # noqa: S101  # the range is not empty
    return best[1], best[2]


@lru_cache(maxsize=256)
def row_layout(weights: ProductFormat, columns: int) -> RowLayout:
    """Of a row of `columns` weights. ValueError where the format has no such rows."""
    size = weights.group_size
    if columns < 1 or (weights.tail == "smaller" and columns % SIZES[-1]):
        raise ValueError(f"the format has no rows of {columns} columns")
    whole, rest = divmod(columns, size)
    if weights.tail == "smaller":
        sizes = trellis.groups(columns)
    elif weights.tail == "padded":
        sizes = (size,) * (whole + bool(rest))
    else:
        sizes = (size,) * whole + ((rest,) if rest else ())
    code_bytes = -(-sum(sizes) * weights.bits // 8)
    codes = np.dtype(np.int8 if weights.codes == "bytes" else np.uint8)
    scales = np.dtype({"trellis": np.int16, "float32": np.float32, "float16": np.float16}[weights.scales])
    return RowLayout(codes, scales, code_bytes, len(sizes), sizes)


def _check_group(group_size: int) -> None:
    if group_size not in GROUP_SIZES:
        raise ValueError(f"products take groups of {', '.join(map(str, GROUP_SIZES))} columns, not {group_size}")


def _four(factors: tuple[float, ...]) -> tuple[float, float, float, float]:
    first, second, third, fourth = factors
    return first, second, third, fourth
