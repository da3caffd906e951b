"""Where packed rows come from: pairs of tensors on disk, or plain tensors that are packed as they are read.

Both read only the rows that are asked for, so that of experts no more than one is in memory beside the model. Left out:
which tensors a checkpoint has (`contents`, `online`).
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from safetensors import safe_open
from torch import Tensor
from tq_kernels import NonFiniteWeight

from tqcli.errors import InputError
from tqcli.formats.native_section import NativeFormat
from tqcli.runtime.headers import Pair
from tqcli.runtime.packed import Shape, decode_packed, encode_packed


class Files(AbstractContextManager["Files"]):
    """Safetensors files by name, mapped into memory, each opened once."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._handles: dict[str, Any] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Close them; a later read opens them again."""
        self._handles.clear()

    def tensor(self, file: str, name: str) -> Tensor:
        """The whole of a tensor."""
        found: Tensor = self._handle(file).get_tensor(name)
        return found

    def slices(self, file: str, name: str) -> Any:
        """What gives parts of a tensor, by index."""
        return self._handle(file).get_slice(name)

    def _handle(self, file: str) -> Any:
        if file not in self._handles:
            self._handles[file] = safe_open(self._paths[file], "pt")
        return self._handles[file]


class Packing(Protocol):
    """Rows of a weight, packed."""

    @property
    def name(self) -> str:
        """On disk."""

    @property
    def stored_as(self) -> NativeFormat:
        """The format of what `take` gives."""

    @property
    def columns(self) -> int:
        """Of the weight."""

    def take(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Codes and scales of some rows, as matrices."""


class _Decodes:
    """Decoding, for both."""

    def decode(self: "Packing", numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """(n,) numbers of rows -> (n, columns)."""
        threads = max(1, torch.get_num_threads())
        pieces = [
            decode_packed(self.stored_as, *self.take(begin, end), self.columns, dtype, threads)
            for begin, end in runs(numbers)
        ]
        return torch.cat(pieces) if pieces else torch.empty(0, self.columns, dtype=dtype)


class PairOnDisk(_Decodes):
    """A packed tensor of a checkpoint."""

    def __init__(self, pair: Pair, stored_as: NativeFormat, columns: int, files: Files) -> None:
        self.name = pair.name
        self.stored_as = stored_as
        self.columns = columns
        self._pair = pair
        self._files = files

    def __repr__(self) -> str:
        return f"the packed tensor `{self.name}`"

    def take(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Codes and scales of some rows, as matrices."""
        each = self._pair.codes.shape[0] // self._pair.rows
        codes, scales = (self._files.slices(one.file, one.name) for one in (self._pair.codes, self._pair.scales))
        return codes[begin * each : end * each], scales[begin:end]


class PlainOnDisk(_Decodes):
    """A plain tensor of a checkpoint, packed as a conversion would pack it: rows are packed on their own."""

    def __init__(self, name: str, file: str, shape: Shape, stored_as: NativeFormat, files: Files) -> None:
        self.name = name
        self.stored_as = stored_as
        self.columns = shape[-1]
        self._shape = shape
        self._file = file
        self._files = files

    def __repr__(self) -> str:
        return f"the tensor `{self.name}`"

    def take(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Codes and scales of some rows, as matrices. Raises InputError for weights that are not finite."""
        try:
            return encode_packed(self.stored_as, self._rows(begin, end), max(1, torch.get_num_threads()))
        except NonFiniteWeight as error:
            why = f"row {begin + error.row} is not finite, or too large"
            raise InputError(f"`{self.name}` cannot be packed", why=why) from error

    def _rows(self, begin: int, end: int) -> Tensor:
        slices = self._files.slices(self._file, self.name)
        if len(self._shape) == 2:
            found: Tensor = slices[begin:end]
            return found
        each = prod(self._shape[1:-1])
        pieces = []
        for item in range(begin // each, -(-end // each)):
            first, last = max(begin - item * each, 0), min(end - item * each, each)
            pieces.append(slices[item].reshape(each, -1)[first:last])
        return torch.cat(pieces)


def runs(numbers: Tensor) -> Iterator[tuple[int, int]]:
    """First and last (not included) of consecutive numbers."""
    if not len(numbers):
        return
    borders = [0, *(int(place) + 1 for place in (numbers.diff() != 1).nonzero().flatten()), len(numbers)]
    for begin, end in pairwise(borders):
        yield int(numbers[begin]), int(numbers[end - 1]) + 1
