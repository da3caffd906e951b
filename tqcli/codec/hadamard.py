"""The signs of the randomised Hadamard rotation. The transform itself is in the kernels, which need its exact order."""

import numpy as np
from numpy.typing import NDArray


def signs(group_size: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The vectors before and after the transform: two float32 arrays of shape (group_size,), +1 or -1.

    One MT19937 word gives one sign, its lowest bit: the numbers that `torch.randint(0, 2, ...)` draws from a CPU
    generator of the same seed, first for the vector before the transform, then for the one after it.
    """
    words = np.random.RandomState(seed).randint(0, 2**32, size=2 * group_size, dtype=np.uint32)
    drawn = np.where(words & 1, np.float32(1), np.float32(-1)).astype(np.float32)
    return drawn[:group_size].copy(), drawn[group_size:].copy()
