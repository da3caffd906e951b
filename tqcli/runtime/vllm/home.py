"""`Home`: the weight of one layer while vLLM's loaders fill it. To them it looks like a parameter of rows.

A layer's weight has parts: vLLM joins q, k and v, gate and up. Each part keeps its own format. Left out: what a layer
does with them (`linear`, `experts`, `embedding`).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from tqcli.errors import InputError
from tqcli.runtime.vllm.cut import cut, span
from tqcli.runtime.vllm.part import Part
from tqcli.runtime.vllm.rows import Rows
from tqcli.runtime.vllm.sources import Packing
from tqcli.runtime.vllm.spec import Packed, Spec


class Home:
    """name: of the layer. parts: in order; their rows are numbered on from one to the next."""

    def __init__(self, name: str, parts: Sequence[Part], columns: int, dtype: torch.dtype) -> None:
        self.name = name
        self.parts = tuple(parts)
        self.columns = columns
        self.dtype = dtype
        self._starts = [sum(part.rows for part in self.parts[:number]) for number in range(len(self.parts))]
        self._finished: tuple[Packed | Tensor, ...] | None = None

    def __repr__(self) -> str:
        return f"the weight of `{self.name}`"

    def parameter(self, numbers: Tensor, device: torch.device) -> nn.Parameter:
        """What loaders see: (*numbers.shape, columns). numbers: int64, the numbers of its rows."""
        return nn.Parameter(Rows(self, numbers, 0, self.columns, self.dtype, device), requires_grad=False)

    def receive(self, there: Rows, given: Rows | Tensor) -> None:
        """Rows of a source, or plain ones. Raises InputError where they do not fit."""
        if there.shape != given.shape or there.shape[-1] != self.columns:
            raise InputError(f"{list(given.shape)} does not fit {self}", why=f"{list(there.shape)} is its place")
        numbers = there.numbers.reshape(-1)
        if not isinstance(given, Rows):
            matrix = given.reshape(-1, self.columns)
            places = torch.arange(len(matrix))
            for part, first, begin, count in self._runs(numbers, places):
                part.put_plain(first, matrix[begin : begin + count], self.dtype)
            return
        for part, first, begin, count in self._runs(numbers, given.numbers.reshape(-1)):
            _put(part, first, given, begin, count)

    def receive_zeros(self, there: Rows) -> None:
        """Rows that belong to nothing on disk."""
        numbers = there.numbers.reshape(-1)
        for part, first, _, count in self._runs(numbers, numbers):
            part.put_zeros(first, count)

    def finished(self) -> tuple[Packed | Tensor, ...]:
        """Its parts. Raises InputError where one is not whole."""
        if self._finished is None:
            self._finished = tuple(part.finished(self.name) for part in self.parts)
        return self._finished

    def _runs(self, numbers: Tensor, others: Tensor) -> Iterator[tuple[Part, int, int, int]]:
        """Part, its first row, the first of the others, and how many: where both are consecutive, in one part."""
        if not len(numbers):
            return
        parts = torch.bucketize(numbers, torch.tensor(self._starts), right=True) - 1
        broken = (numbers.diff() != 1) | (others.diff() != 1) | (parts.diff() != 0)
        borders = [0, *(int(place) + 1 for place in broken.nonzero().flatten()), len(numbers)]
        for begin, end in pairwise(borders):
            number = int(parts[begin])
            yield self.parts[number], int(numbers[begin]) - self._starts[number], int(others[begin]), end - begin


def _put(part: Part, first: int, given: Rows, begin: int, count: int) -> None:
    packing: Packing = given.of
    width = given.shape[-1]
    codes, scales = packing.take(begin, begin + count)
    wanted = span(packing.stored_as, packing.columns, given.first, width)
    spec = Spec(packing.stored_as, wanted.columns, given.first - wanted.begin, width)
    part.put_packed(first, *cut(packing.stored_as, codes, scales, packing.columns, wanted), spec)
