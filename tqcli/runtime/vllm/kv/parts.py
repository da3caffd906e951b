"""Which blocks of a paged cache a step has to read, part by part, so that what is unpacked at a time stays bounded.

A part is a run of the step's sequences. Its blocks are unpacked into memory of their own, in which the part's block
table counts; blocks that sequences share are unpacked once, those that a sliding window has passed not at all.
Pure arithmetic on the step's numbers. Left out: the reading.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """sequences, tokens: of the step, as slices.

    blocks: int64 (n,), what is to be unpacked, each block once. lengths: int64 (n,), how many tokens of each are in
    use. table: int32 (sequences, as many as the step's table has), a block of each sequence as an index of `blocks`;
    0 where there is none, or none that anything attends to.
    """

    sequences: slice
    tokens: slice
    blocks: Tensor
    lengths: Tensor
    table: Tensor


@dataclass(frozen=True)
class Step:
    """A step's sequences. starts: (sequences + 1,), where their new tokens lie. lengths: (sequences,), tokens seen,
    the new ones included. table: (sequences, any), their blocks. block_tokens: of a block. window: how many tokens
    attention looks back at, the current one included; negative where there is no limit.
    """

    starts: Numbers
    lengths: Numbers
    table: Numbers
    block_tokens: int
    window: int = -1

    def span(self, sequence: int) -> tuple[int, int]:
        """The first block of a sequence that its new tokens attend to, and the one after the last."""
        length = int(self.lengths[sequence])
        first = 0
        if self.window >= 0:
            oldest = length - int(self.starts[sequence + 1] - self.starts[sequence])
            # One token more than is looked at: what a kernel calls a window differs by one between engines.
            first = max(oldest - self.window, 0) // self.block_tokens
        return first, -(-length // self.block_tokens)


def parts(step: Step, limit: int) -> Iterator[Part]:
    """Parts of `limit` blocks at most, or of one sequence that has more. `limit` counts shared blocks as often as they
    are shared.
    """
    spans = [step.span(sequence) for sequence in range(len(step.lengths))]
    first = held = 0
    for sequence, (start, stop) in enumerate(spans):
        if held and held + stop - start > limit:
            yield _part(step, spans, first, sequence)
            first, held = sequence, 0
        held += stop - start
    if len(spans) > first:
        yield _part(step, spans, first, len(spans))


def _part(step: Step, spans: list[tuple[int, int]], first: int, last: int) -> Part:
    wanted: list[Numbers] = [np.empty(0, np.int64)]
    used: list[Numbers] = [np.empty(0, np.int64)]
    for sequence in range(first, last):
        start, stop = spans[sequence]
        wanted.append(step.table[sequence, start:stop])
        ends = step.lengths[sequence] - np.arange(start, stop) * step.block_tokens
        used.append(np.minimum(ends, step.block_tokens))
    blocks, places = np.unique(np.concatenate(wanted), return_inverse=True)
    lengths = np.zeros(len(blocks), np.int64)
    np.maximum.at(lengths, places, np.concatenate(used))
    return Part(
        slice(first, last),
        slice(int(step.starts[first]), int(step.starts[last])),
        torch.from_numpy(blocks.astype(np.int64)),
        torch.from_numpy(lengths),
        torch.from_numpy(_table(step, spans[first:last], places)),
    )


def _table(step: Step, spans: list[tuple[int, int]], places: Numbers) -> NDArray[np.int32]:
    table = np.zeros((len(spans), step.table.shape[1]), np.int32)
    done = 0
    for row, (start, stop) in zip(table, spans, strict=True):
        row[start:stop] = places[done : done + stop - start]
        done += stop - start
    return table
