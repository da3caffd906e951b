"""Packed weights cut by columns, as one rank of a tensor-parallel group needs them.

No group is ever cut: a rank keeps each group that holds one of its columns, whole. Groups decode on their own, so what
is kept is a packed weight by itself, of a few more columns than were asked for; activations meet those with zeros.
"""

from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor
from tq_kernels import trellis

from tqcli.formats.native_section import NativeFormat
from tqcli.formats.trellis import Trellis
from tqcli.runtime.packed import stored_shapes


@dataclass(frozen=True)
class Span:
    """Consecutive groups of a row. begin, end: columns. first, last: groups; the last is not among them."""

    begin: int
    end: int
    first: int
    last: int

    @property
    def columns(self) -> int:
        """How many."""
        return self.end - self.begin


def span(stored_as: NativeFormat, columns: int, first: int, count: int) -> Span:
    """The groups that hold columns first to first + count of a row of `columns`. ValueError for columns beyond it."""
    if first < 0 or count < 1 or first + count > columns:
        raise ValueError(f"there are no columns {first} to {first + count} among {columns}")
    borders = _borders(stored_as, columns)
    begin = max(number for number, border in enumerate(borders) if border <= first)
    end = min(number for number, border in enumerate(borders) if border >= first + count)
    return Span(borders[begin], borders[end], begin, end)


def cut(stored_as: NativeFormat, codes: Tensor, scales: Tensor, columns: int, wanted: Span) -> tuple[Tensor, Tensor]:
    """Codes and scales of whole rows, as on disk -> those of the span, as a weight of its columns has them on disk."""
    if wanted.columns == columns:
        return codes, scales
    rows = len(scales)
    begin, end = _row_bytes(stored_as, wanted.begin), _row_bytes(stored_as, wanted.end)
    shape = stored_shapes((rows, wanted.columns), stored_as, by_item=False)[0]
    return codes.reshape(rows, -1)[:, begin:end].reshape(shape), scales[:, wanted.first : wanted.last]


def _borders(stored_as: NativeFormat, columns: int) -> list[int]:
    """Columns at which groups begin, and the end of the last one."""
    if isinstance(stored_as, Trellis):
        return [0, *accumulate(trellis.groups(columns))]
    return [*range(0, columns, stored_as.group_size), columns]


def _row_bytes(stored_as: NativeFormat, columns: int) -> int:
    """Bytes of codes before a group that begins at that column."""
    return stored_as.stored("", (1, columns), "BF16")[0].nbytes if columns else 0
