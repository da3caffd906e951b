"""A plan's work cut into pieces of a few megabytes, each read and encoded on its own. This is what bounds memory.

Rows are independent in every format, so pieces of rows, joined in order, are the bytes of the whole tensor. Kept
tensors are cut into runs of elements. Left out: where the results are written.
"""

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


def encode_piece(source: Storage, piece: Piece) -> tuple[NDArray[Any], ...]:
    """Read a piece and give one array for each stored tensor of its decision.

    Raises InputError naming the tensor where a weight is NaN or infinite, or does not fit float16.
    """
    tensor = piece.decision.tensor
    data = _read(source, piece)
    if not is_float_dtype(tensor.dtype):
        return (data,)
    if piece.decision.tq is None:
        return (_keep(piece, data, tensor.dtype),)
    try:
        return piece.decision.tq.encode(data.reshape(piece.end - piece.begin, -1), tensor.dtype)
    except NonFiniteWeight as error:
        raise _not_finite(tensor.name, f"row {piece.begin + error.row}") from error


def _read(source: Storage, piece: Piece) -> NDArray[Any]:
    tensor = piece.decision.tensor
    buffer = bytearray(piece.source_bytes)
    source.read_into(tensor.file, tensor.offset + piece.begin * _step(piece.decision), memoryview(buffer))
    return as_elements(np.frombuffer(buffer, np.uint8), tensor.dtype)


def _step(decision: Decision) -> int:
    """Bytes of one row of a packed tensor, or of one element of a kept one."""
    item = DTYPE_BITS[decision.tensor.dtype] // 8
    return as_matrix(decision.tensor.shape)[1] * item if decision.tq else item


def _keep(piece: Piece, data: NDArray[Any], dtype: FloatDtype) -> NDArray[Any]:
    tensor = piece.decision.tensor
    bad = tq_kernels.first_non_finite(data, dtype)
    if bad is not None:
        raise _not_finite(tensor.name, f"element {piece.begin + bad}")
    return data if piece.decision.stored[0].dtype == dtype else _to_float16(tensor.name, data, dtype)


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
