"""A plan's work cut into pieces of a few megabytes, each read and encoded on its own. This is what bounds memory.

Rows, or blocks of rows, are independent in every format, so pieces of them, joined in order, are the bytes of the whole
weight. Kept tensors are cut into runs of elements. Left out: where the results are written.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tq_kernels
from numpy.typing import NDArray
from tq_kernels.floats import narrow, widen
from tq_kernels.hlwq import NormTooLarge
from tq_kernels.types import FloatDtype, NonFiniteWeight

from tqcli.checkpoint.header import DTYPE_BITS, TensorInfo
from tqcli.checkpoint.storage import Storage
from tqcli.codec.floats import as_elements, is_float_dtype
from tqcli.decision import Decision
from tqcli.errors import InputError
from tqcli.formats.base import AbsmaxFormat
from tqcli.greatest import Greatest
from tqcli.packed import PackedTensor, decode_rows
from tqcli.weights import Run, Source

PIECE_BYTES = 8 << 20
_DAMAGED = "the source is damaged: fetch it again"


@dataclass(frozen=True)
class Piece:
    """Some rows of one source tensor; or some elements, where a plain tensor is kept. unit: bytes of one of them.

    offset: rows of the weight before this piece.
    """

    decision: Decision
    source: Source
    begin: int
    end: int
    unit: int
    offset: int = 0

    @property
    def source_bytes(self) -> int:
        """Bytes read from the source; of a compressed one, the bytes that they decode to."""
        return (self.end - self.begin) * self.unit


def pieces(decision: Decision, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Cut one decision's work, in order."""
    offset = 0
    for run in decision.weight.runs:
        first, count, unit, block = _units(decision, run)
        size = max(block, piece_bytes // max(unit, 1) // block * block)
        for begin in range(0, count, size):
            yield Piece(decision, run.source, first + begin, first + min(begin + size, count), unit, offset + begin)
        offset += count


def _units(decision: Decision, run: Run) -> tuple[int, int, int, int]:
    """First unit, number of units, bytes of a unit, and how many must stay together."""
    weight = decision.weight
    item, columns = DTYPE_BITS[weight.dtype] // 8, weight.columns
    if decision.format is None and isinstance(run.source, TensorInfo):
        return run.first * columns, run.rows * columns, item, 1
    block = decision.format.block_rows if decision.format else 1
    return run.first, run.rows, columns * item, block


class PieceEncoder:
    """Reads and encodes pieces of one source. Safe to use from several threads; each reads into a buffer of its own."""

    def __init__(self, source: Storage) -> None:
        self._source = source
        self._local = threading.local()
        self._greatest = Greatest(source)

    def __call__(self, piece: Piece) -> tuple[NDArray[Any], ...]:
        """One array for each stored tensor of the piece's decision whose content is not known beforehand.

        Raises InputError naming the tensor where a weight is NaN or infinite, or does not fit float16.
        """
        stored_as, dtype = piece.decision.format, piece.decision.weight.dtype
        if stored_as is None or not is_float_dtype(dtype):
            return (_keep(piece, self._elements(piece, fresh=True)),)
        if piece.decision.sharing and isinstance(stored_as, AbsmaxFormat):
            stored_as = stored_as.with_absmax(self._greatest(piece.decision.sharing))
        data = self._elements(piece, fresh=False)
        try:
            return stored_as.encode(data.reshape(piece.end - piece.begin, -1), dtype)
        except NonFiniteWeight as error:
            raise _refused(piece, error) from error

    def _elements(self, piece: Piece, *, fresh: bool) -> NDArray[Any]:
        """Flat. fresh: in memory that no other piece writes into, which a kept tensor's bytes need."""
        source, dtype = piece.source, piece.decision.weight.dtype
        if isinstance(source, PackedTensor):
            return narrow(decode_rows(self._source, source, piece.begin, piece.end), _float(dtype)).reshape(-1)
        buffer = bytearray(piece.source_bytes) if fresh else self._buffer(piece.source_bytes)
        view = memoryview(buffer)[: piece.source_bytes]
        self._source.read_into(source.file, source.offset + piece.begin * piece.unit, view)
        return as_elements(np.frombuffer(view, np.uint8), dtype)

    def _buffer(self, nbytes: int) -> bytearray:
        """This thread's buffer. Fresh memory for every piece costs as much as the encoding: the system clears it."""
        buffer: bytearray = getattr(self._local, "buffer", bytearray())
        if len(buffer) < nbytes:
            buffer = bytearray(nbytes)
            self._local.buffer = buffer
        return buffer


def begun_here(piece: Piece, block_rows: int) -> bool:
    """Whether the entries of a stored tensor, each for so many rows, begin in this piece, or were written before."""
    return piece.offset % block_rows == 0


def _float(dtype: str) -> FloatDtype:
    if not is_float_dtype(dtype):
        raise TypeError(f"a compressed weight decodes to floats, not to {dtype}")
    return dtype


def _keep(piece: Piece, data: NDArray[Any]) -> NDArray[Any]:
    name, dtype = piece.source.name, piece.decision.weight.dtype
    if not is_float_dtype(dtype):
        return data
    bad = tq_kernels.first_non_finite(data, dtype)
    if bad is not None:
        at = bad if isinstance(piece.source, PackedTensor) else piece.begin + bad
        raise _not_finite(name, f"element {at}")
    same = piece.decision.stored[0].dtype == dtype
    return data if same else _to_float16(name, data, dtype)


def _to_float16(name: str, data: NDArray[Any], dtype: FloatDtype) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = widen(data, dtype).astype(np.float16)
    if not np.isfinite(half).all():
        fix = "leave `keep_dtype` at `source`"
        raise InputError(f"`{name}` does not fit float16", why="a value is above 65504", fix=fix)
    return half


def _refused(piece: Piece, error: NonFiniteWeight) -> InputError:
    """The codec's own words, with the row counted from the tensor's first."""
    name, why = piece.source.name, str(type(error)(piece.begin + error.row))
    if isinstance(error, NormTooLarge):
        return InputError(f"`{name}` does not fit the format", why=why, fix="`keep` it, by an override in the recipe")
    return InputError(f"`{name}` is not finite", why=why, fix=_DAMAGED)


def _not_finite(name: str, where: str) -> InputError:
    why = f"{where} holds NaN, Inf or a value too large for float32"
    return InputError(f"`{name}` is not finite", why=why, fix=_DAMAGED)
