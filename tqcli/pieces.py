"""A plan's work cut into pieces of a few megabytes, each read and encoded on its own. This is what bounds memory.

Rows are independent in every format, so pieces of rows, joined in order, are the bytes of the whole tensor. Kept
tensors are cut into runs of elements. Left out: where the results are written.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tq_kernels
from numpy.typing import NDArray
from tq_kernels.types import FloatDtype, NonFiniteWeight

from tqcli.checkpoint.header import DTYPE_BITS
from tqcli.checkpoint.storage import Storage
from tqcli.codec.floats import as_elements, is_float_dtype, widen
from tqcli.errors import InputError
from tqcli.formats.base import as_matrix
from tqcli.plan import Decision

PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class Piece:
    """Some rows of a packed tensor, or some elements of a kept one."""

    decision: Decision
    begin: int
    end: int

    @property
    def source_bytes(self) -> int:
        """Bytes read from the source."""
        return (self.end - self.begin) * _step(self.decision)


def pieces(decision: Decision, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Cut one decision's work, in order."""
    step = _step(decision)
    count = decision.tensor.nbytes // step if step else 0
    size = max(1, piece_bytes // max(step, 1))
    for begin in range(0, count, size):
        yield Piece(decision, begin, min(begin + size, count))


class PieceEncoder:
    """Reads and encodes pieces of one source. Safe to use from several threads; each reads into a buffer of its own."""

    def __init__(self, source: Storage) -> None:
        self._source = source
        self._local = threading.local()

    def __call__(self, piece: Piece) -> tuple[NDArray[Any], ...]:
        """One array for each stored tensor of the piece's decision.

        Raises InputError naming the tensor where a weight is NaN or infinite, or does not fit float16.
        """
        tensor, tq = piece.decision.tensor, piece.decision.tq
        if tq is None or not is_float_dtype(tensor.dtype):
            # A kept tensor's bytes are the result: they need memory that no other piece writes into.
            return (_keep(piece, self._read(piece, bytearray(piece.source_bytes))),)
        data = self._read(piece, self._buffer(piece.source_bytes))
        try:
            return tq.encode(data.reshape(piece.end - piece.begin, -1), tensor.dtype)
        except NonFiniteWeight as error:
            raise _not_finite(tensor.name, f"row {piece.begin + error.row}") from error

    def _read(self, piece: Piece, buffer: bytearray) -> NDArray[Any]:
        tensor = piece.decision.tensor
        begin = tensor.offset + piece.begin * _step(piece.decision)
        view = memoryview(buffer)[: piece.source_bytes]
        self._source.read_into(tensor.file, begin, view)
        return as_elements(np.frombuffer(view, np.uint8), tensor.dtype)

    def _buffer(self, nbytes: int) -> bytearray:
        """This thread's buffer. Fresh memory for every piece costs as much as the encoding: the system clears it."""
        buffer: bytearray = getattr(self._local, "buffer", bytearray())
        if len(buffer) < nbytes:
            buffer = bytearray(nbytes)
            self._local.buffer = buffer
        return buffer


def _step(decision: Decision) -> int:
    """Bytes of one row of a packed tensor, or of one element of a kept one."""
    item = DTYPE_BITS[decision.tensor.dtype] // 8
    return as_matrix(decision.tensor.shape)[1] * item if decision.tq else item


def _keep(piece: Piece, data: NDArray[Any]) -> NDArray[Any]:
    tensor = piece.decision.tensor
    if not is_float_dtype(tensor.dtype):
        return data
    bad = tq_kernels.first_non_finite(data, tensor.dtype)
    if bad is not None:
        raise _not_finite(tensor.name, f"element {piece.begin + bad}")
    same = piece.decision.stored[0].dtype == tensor.dtype
    return data if same else _to_float16(tensor.name, data, tensor.dtype)


def _to_float16(name: str, data: NDArray[Any], dtype: FloatDtype) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = widen(data, dtype).astype(np.float16)
    if not np.isfinite(half).all():
        fix = "leave `keep_dtype` at `source`"
        raise InputError(f"`{name}` does not fit float16", why="a value is above 65504", fix=fix)
    return half


def _not_finite(name: str, where: str) -> InputError:
    why = f"{where} holds NaN, Inf or a value too large for float32"
    return InputError(f"`{name}` is not finite", why=why, fix="the source is damaged: fetch it again")
