"""A weight as it lies in a compressed folder: some tensors, and the format that decodes them.

Rows can be decoded on their own, so a weight of any size is read in pieces. Left out: which tensors of a folder belong
together, which its reader in `readers/` tells.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.storage import Storage
from tqcli.codec.floats import as_array
from tqcli.formats.base import Format


@dataclass(frozen=True)
class Part:
    """One stored tensor of a weight. block_rows: rows of the weight for each entry of its first dimension."""

    tensor: TensorInfo
    block_rows: int = 1


@dataclass(frozen=True)
class PackedTensor:
    """One weight, compressed.

    parts: what the format decodes, in its order. extra: what comes with them and is not decoded, such as sizes.
    rows, columns: of the weight as a matrix; up to `padding` of the columns may be none of the weight's.
    shape: the original one, where the folder says it. dtype: what a decode is rounded to when it is stored.
    """

    name: str
    format: Format
    parts: tuple[Part, ...]
    rows: int
    columns: int
    shape: tuple[int, ...] | None
    padding: int = 0
    dtype: FloatDtype = "BF16"
    extra: tuple[TensorInfo, ...] = ()

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor on disk that belongs to the weight."""
        return (*(part.tensor for part in self.parts), *self.extra)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(tensor.nbytes for tensor in self.tensors)


def decode_rows(
    storage: Storage, packed: PackedTensor, begin: int, end: int, columns: int | None = None
) -> NDArray[np.float32]:
    """Rows of a weight -> float32 (end - begin, columns). columns: where they are known better than by the folder."""
    block = packed.format.block_rows
    first, last = begin - begin % block, min(packed.rows, -(-end // block) * block)
    arrays = tuple(_entries(storage, part, packed.rows, first, last) for part in packed.parts)
    decoded = packed.format.decode(arrays, packed.columns if columns is None else columns)
    return decoded[begin - first : end - first]


def _entries(storage: Storage, part: Part, rows: int, first: int, last: int) -> NDArray[Any]:
    """The entries that stand for rows first to last, as a matrix: its first dimension counts them."""
    tensor = part.tensor
    count = -(-rows // part.block_rows)
    begin, end = first // part.block_rows, -(-last // part.block_rows)
    width = tensor.nbytes // count
    raw = storage.read(tensor.file, tensor.offset + begin * width, (end - begin) * width)
    return as_array(raw, tensor.dtype).reshape(end - begin, -1)
