"""One tensor of a converted folder against the source's: kept ones by their bytes, packed ones by their decode.

Rows are taken at even distances, or all of them. Left out: which tensors there should be, and checksums.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
from tqcli.codec.floats import as_elements, is_float_dtype, widen
from tqcli.errors import CheckFailed
from tqcli.formats.base import as_matrix
from tqcli.packed import PackedTensor

SAMPLED_ROWS = 32
_CHUNK_BYTES = 8 << 20
# Gaussian rows lose .118, .034 and .009 of their energy; a decode gone wrong loses about all of it.
_ERROR_LIMITS = {2: 0.25, 3: 0.10, 4: 0.04}


@dataclass(frozen=True)
class TensorError:
    """Relative squared error of one packed tensor over the rows compared."""

    name: str
    error: float


def compare_packed(
    output: Checkpoint, pair: PackedTensor, source: Checkpoint, original: TensorInfo, *, every_row: bool
) -> TensorError:
    """Decode rows and compare. Raises CheckFailed where the shape or the values are not the source's."""
    rows, columns = as_matrix(original.shape)
    padding = pair.columns - columns
    if pair.rows != rows or not 0 <= padding < pair.tq.group_size or not is_float_dtype(original.dtype):
        raise CheckFailed(f"`{pair.name}` has another shape than the source")
    lost = total = 0.0
    for begin, end in _runs(rows, columns, every_row=every_row):
        raw = as_elements(_raw(source, original, begin, end, rows), original.dtype)
        truth = widen(raw, original.dtype).reshape(end - begin, columns)
        found = decode_rows(output, pair, begin, end, columns)
        lost += float(np.square(found - truth, dtype=np.float64).sum())
        total += float(np.square(truth, dtype=np.float64).sum())
    return checked_error(pair.name, pair.tq.bits, lost, total)


def checked_error(name: str, bits: int, lost: float, total: float) -> TensorError:
    """The relative error of a decode from two sums of squares. Raises CheckFailed where it is too large to be right."""
    error = lost / total if total else float(lost > 0)
    limit = _ERROR_LIMITS[bits]
    # Written so that NaN fails too.
    if not error <= limit:
        why = f"relative squared error {error:.4f}, at {bits} bits at most {limit}"
        raise CheckFailed(f"`{name}` does not decode to the source", why=why)
    return TensorError(name, error)


def compare_kept(
    output: Checkpoint, kept: TensorInfo, source: Checkpoint, original: TensorInfo, *, every_row: bool
) -> None:
    """Raises CheckFailed where a kept tensor is not the source's, exactly or rounded to float16."""
    if kept.shape != original.shape:
        raise CheckFailed(f"`{original.name}` has another shape than the source")
    rows, columns = as_matrix(original.shape) if original.shape else (1, 1)
    for begin, end in _runs(rows, columns, every_row=every_row):
        here, there = _raw(output, kept, begin, end, rows), _raw(source, original, begin, end, rows)
        if here != there and not _same_as_half(kept, here, original, there):
            raise CheckFailed(f"`{original.name}` differs from the source")


def decode_rows(checkpoint: Checkpoint, pair: PackedTensor, begin: int, end: int, columns: int) -> NDArray[np.float32]:
    """Rows of a packed tensor -> float32 (end - begin, columns)."""
    codes = as_elements(_raw(checkpoint, pair.codes, begin, end, pair.rows), "U8")
    norms = as_elements(_raw(checkpoint, pair.norms, begin, end, pair.rows), "F32").reshape(end - begin, -1)
    return pair.tq.decode((codes.reshape(norms.size, -1), norms), columns)


def _raw(checkpoint: Checkpoint, tensor: TensorInfo, begin: int, end: int, rows: int) -> bytes:
    """The bytes of some rows; codes of several groups count as one row."""
    width = tensor.nbytes // rows if rows else 0
    return checkpoint.storage.read(tensor.file, tensor.offset + begin * width, (end - begin) * width)


def _same_as_half(kept: TensorInfo, here: bytes, original: TensorInfo, there: bytes) -> bool:
    """A recipe may keep tensors as float16."""
    if kept.dtype != "F16" or not is_float_dtype(original.dtype):
        return False
    rounded: NDArray[Any] = widen(as_elements(there, original.dtype), original.dtype).astype(np.float16)
    return rounded.tobytes() == here


def _runs(rows: int, columns: int, *, every_row: bool) -> Iterator[tuple[int, int]]:
    """Ranges of rows: all in pieces, or single ones at even distances with the first and the last among them."""
    if every_row:
        step = max(1, _CHUNK_BYTES // max(4 * columns, 1))
        yield from ((begin, min(begin + step, rows)) for begin in range(0, rows, step))
    elif rows:
        for row in sorted({round(i * (rows - 1) / (SAMPLED_ROWS - 1)) for i in range(SAMPLED_ROWS)}):
            yield row, row + 1
