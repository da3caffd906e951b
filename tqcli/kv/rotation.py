"""The rotation that spreads a head vector's energy over its numbers: random signs, then an orthonormal Hadamard matrix.

Vectors are the columns of a matrix, so that every step works on contiguous rows; the sums are written out and hence the
same for any number of columns: what a token becomes does not depend on the tokens beside it.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tqcli.codec import hadamard


def signs(block: int, seed: int, device: torch.device) -> Tensor:
    """float32 (block, 1), +1 or -1."""
    return torch.tensor(_signs(block, seed), device=device)[:, None]


def hadamard_transform(columns: Tensor) -> Tensor:
    """H times a float32 (block, n) matrix, H of entries +1 and -1 in Sylvester's order; not scaled. A new tensor."""
    block, count = columns.shape
    source, target = columns, torch.empty_like(columns)
    spare = torch.empty_like(columns)
    half = 1
    while half < block:
        pairs = source.view(block // (2 * half), 2, half, count)
        out = target.view(block // (2 * half), 2, half, count)
        torch.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        source, target, spare = target, spare, target
        half *= 2
    return source


def column_sums(columns: Tensor) -> Tensor:
    """The sum of each column, float32 (n,), halves added to halves: the same for a column among any others."""
    while columns.shape[0] > 1:
        half = columns.shape[0] // 2
        columns = columns[:half] + columns[half:]
    return columns[0]


@lru_cache(maxsize=64)
def _signs(block: int, seed: int) -> NDArray[np.float32]:
    return hadamard.signs(block, seed)[0]
