"""One weight of a converted folder against the source's: kept ones by their bytes, packed ones by their decode.

Rows are taken at even distances, or all of them. Left out: which weights there should be, and checksums.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tq_kernels.floats import widen

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.storage import Storage
from tqcli.codec.floats import as_elements, is_float_dtype
from tqcli.errors import CheckFailed
from tqcli.formats.base import Format
from tqcli.packed import PackedTensor, decode_rows
from tqcli.weights import Weight, read_elements, read_rows

SAMPLED_ROWS = 32
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class TensorError:
    """Relative squared error of one packed weight over the rows compared."""

    name: str
    error: float


def compare_packed(
    output: Checkpoint, packed: PackedTensor, source: Storage, original: Weight, *, every_row: bool
) -> TensorError:
    """Decode rows and compare. Raises CheckFailed where the shape or the values are not the source's."""
    rows, columns = original.rows, original.columns
    fits = packed.rows == rows and 0 <= packed.columns - columns <= packed.padding
    if not fits or (packed.shape or original.shape) != original.shape or not is_float_dtype(original.dtype):
        raise CheckFailed(f"`{packed.name}` has another shape than the source")
    lost = total = 0.0
    for begin, end in _runs(rows, columns, every_row=every_row):
        truth = read_rows(source, original, begin, end - begin)
        found = decode_rows(output.storage, packed, begin, end, columns)
        lost += float(np.square(found - truth, dtype=np.float64).sum())
        total += float(np.square(truth, dtype=np.float64).sum())
    return checked_error(packed.name, packed.format, lost, total)


def checked_error(name: str, stored_as: Format, lost: float, total: float) -> TensorError:
    """The relative error of a decode from two sums of squares. Raises CheckFailed where it is too large to be right."""
    error = lost / total if total else float(lost > 0)
    # Written so that NaN fails too.
    if not error <= stored_as.error_limit:
        why = f"relative squared error {error:.4f}, as {stored_as.label} at most {stored_as.error_limit}"
        raise CheckFailed(f"`{name}` does not decode to the source", why=why)
    return TensorError(name, error)


def compare_kept(output: Checkpoint, kept: TensorInfo, source: Storage, original: Weight, *, every_row: bool) -> None:
    """Raises CheckFailed where a kept tensor is not the source's, exactly or rounded to float16."""
    if kept.shape != original.shape:
        raise CheckFailed(f"`{kept.name}` has another shape than the source")
    rows = original.rows
    for begin, end in _runs(rows, original.columns, every_row=every_row):
        width = kept.nbytes // rows
        here = output.storage.read(kept.file, kept.offset + begin * width, (end - begin) * width)
        there = read_elements(source, original, begin, end - begin)
        if here != there.tobytes() and not _same_as_half(kept, here, original, there):
            raise CheckFailed(f"`{kept.name}` differs from the source")


def _same_as_half(kept: TensorInfo, here: bytes, original: Weight, there: NDArray[Any]) -> bool:
    """A recipe may keep tensors as float16."""
    if kept.dtype != "F16" or not is_float_dtype(original.dtype):
        return False
    elements = as_elements(there.view(np.uint8), original.dtype)
    rounded: NDArray[Any] = widen(elements, original.dtype).astype(np.float16)
    return rounded.tobytes() == here


def _runs(rows: int, columns: int, *, every_row: bool) -> Iterator[tuple[int, int]]:
    """Ranges of rows: all in pieces, or single ones at even distances with the first and the last among them."""
    if every_row:
        step = max(1, _CHUNK_BYTES // max(4 * columns, 1))
        yield from ((begin, min(begin + step, rows)) for begin in range(0, rows, step))
    elif rows:
        for row in sorted({round(i * (rows - 1) / (SAMPLED_ROWS - 1)) for i in range(SAMPLED_ROWS)}):
            yield row, row + 1
