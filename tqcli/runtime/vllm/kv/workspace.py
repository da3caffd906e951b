"""Memory that layers unpack their blocks into, one layer after the other: kept, since fresh memory is slow."""

import math

import torch
from torch import Tensor

# Parts of a step are made to fit. A single sequence may need more, and gets it.
_USUAL_BYTES = 1 << 26


class Workspace:
    """Blocks of `shape` and `dtype`; it grows to what was asked for at most and stays so."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, usual_bytes: int = _USUAL_BYTES) -> None:
        self._memory = torch.empty(0, *shape, dtype=dtype)
        self.usual_blocks = max(usual_bytes // (math.prod(shape) * dtype.itemsize), 1)

    def blocks(self, count: int) -> Tensor:
        """(count, *shape), of any contents."""
        if count > len(self._memory):
            self._memory = self._memory.new_empty(count, *self._memory.shape[1:])
        return self._memory[:count]
