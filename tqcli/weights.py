"""A weight of the model, whatever it is made of: rows of one or several tensors of the source, plain or compressed.

Formats differ in how they cut and join weights (experts one by one, or stacked; gate and up apart, or fused). Each
says so with runs of rows, and everything else reads weights through them. Left out: names and roles of models.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tq_kernels.floats import narrow, widen

from tqcli.architectures.base import TensorRole
from tqcli.checkpoint.header import DTYPE_BITS, TensorInfo
from tqcli.checkpoint.storage import Storage
from tqcli.checkpoint.stored import Shape
from tqcli.codec.floats import as_elements, is_float_dtype
from tqcli.packed import PackedTensor, decode_rows

Source = TensorInfo | PackedTensor


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one tensor of the source, seen as a matrix."""

    source: Source
    first: int
    rows: int


@dataclass(frozen=True)
class Weight:
    """One weight of the output, or of the original.

    name: in the folder that it belongs to. selector: the original's name, by which recipes select. dtype: of its
    elements when read. runs: where its rows come from, in order.
    """

    name: str
    selector: str
    role: TensorRole
    dtype: str
    shape: Shape
    runs: tuple[Run, ...]

    @property
    def columns(self) -> int:
        """The last dimension; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """All other dimensions together."""
        return prod(self.shape[:-1])

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, uncompressed."""
        return self.parameters * DTYPE_BITS[self.dtype] // 8

    @property
    def is_plain(self) -> bool:
        """Whether its elements lie in the source as they are."""
        return all(isinstance(run.source, TensorInfo) for run in self.runs)

    def cut(self, first: int, rows: int) -> tuple[Run, ...]:
        """The runs of some of its rows."""
        found = []
        for run in self.runs:
            begin, end = max(first, 0), min(first + rows, run.rows)
            if begin < end:
                found.append(Run(run.source, run.first + begin, end - begin))
            first -= run.rows
        return tuple(found)

    def renamed(self, name: str) -> "Weight":
        """The same weight under another name."""
        return replace(self, name=name)

    def part(self, name: str, first: int, shape: Shape, role: TensorRole) -> "Weight":
        """A weight of some of its rows, from `first` on: as many as `shape` has."""
        return replace(self, name=name, role=role, shape=shape, runs=self.cut(first, prod(shape[:-1])))


def joined(first: Weight, name: str, shape: Shape, runs: Iterable[Run]) -> Weight:
    """A weight of other weights' runs. `first`: one of them, for everything else. ValueError if rows do not add up."""
    weight = replace(first, name=name, shape=shape, runs=tuple(runs))
    if sum(run.rows for run in weight.runs) != weight.rows:
        raise ValueError(f"{name}: {sum(run.rows for run in weight.runs)} rows for shape {shape}")
    return weight


def whole(source: Source, name: str, role: TensorRole, dtype: str, shape: Shape) -> Weight:
    """A weight that is one tensor of the source, under its own name."""
    return Weight(name, name, role, dtype, shape, (Run(source, 0, prod(shape[:-1])),))


def read_run(storage: Storage, run: Run, columns: int, dtype: str) -> bytes | NDArray[Any]:
    """The rows of one run as elements of `dtype`: bytes where they lie so, an array where they are decoded."""
    source = run.source
    if isinstance(source, TensorInfo):
        width = columns * DTYPE_BITS[source.dtype] // 8
        return storage.read(source.file, source.offset + run.first * width, run.rows * width)
    decoded = decode_rows(storage, source, run.first, run.first + run.rows)
    return narrow(decoded, dtype) if is_float_dtype(dtype) else decoded


def read_elements(storage: Storage, weight: Weight, first: int, rows: int) -> NDArray[Any]:
    """Rows of a weight as its elements, flat: BF16 as uint16, F16 or F32; bytes for other dtypes."""
    parts: Sequence[NDArray[Any]] = [
        np.asarray(as_elements(_as_bytes(read_run(storage, run, weight.columns, weight.dtype)), weight.dtype))
        for run in weight.cut(first, rows)
    ]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else as_elements(b"", weight.dtype)


def read_rows(storage: Storage, weight: Weight, first: int, rows: int) -> NDArray[np.float32]:
    """Rows of a weight -> float32 (rows, columns). ValueError where its elements are no floats."""
    if not is_float_dtype(weight.dtype):
        raise ValueError(f"{weight.name} is {weight.dtype}")
    return widen(read_elements(storage, weight, first, rows), weight.dtype).reshape(rows, weight.columns)


def _as_bytes(data: bytes | NDArray[Any]) -> bytes | NDArray[np.uint8]:
    return data if isinstance(data, bytes) else np.ascontiguousarray(data).view(np.uint8).reshape(-1)
