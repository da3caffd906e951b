"""The constants of the trellis kernels, and how a row is cut into groups. Left out: where codebooks come from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUPS = (128, 64, 32, 16)
BITS = (2, 3, 4)

_LEAST_SCALE, _LARGEST_SCALE = 0.1, 1.9  # of the multipliers that encode tries


@dataclass(frozen=True, eq=False)
class TrellisTables:
    """Constants of one (codebook, rotation).

    bits: 2, 3 or 4 for each weight.
    codebook: int8 (256,), the number of each window, not all zero.
    signs: float32 (128,), +1 or -1, of the randomised Hadamard rotation; None for groups that are not rotated.
    scales: multipliers of the weights that `encode` tries, best first among equals. 1.0 makes Gaussian weights as wide
        as the codebook is meant for, which is told from the mean square of its numbers.
    """

    bits: int
    codebook: NDArray[np.int8]
    signs: NDArray[np.float32] | None
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """ValueError unless every field has the stated type, shape, layout and range: native code trusts them."""
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {BITS}, not {self.bits}")
        _check_table(self.codebook, np.int8, 256)
        if not self.codebook.any():
            raise ValueError("a codebook must not be all zeros")
        if self.signs is not None:
            _check_table(self.signs, np.float32, 128)
            if not (np.abs(self.signs) == 1).all():
                raise ValueError("signs must be +1 or -1")
        if not self.scales or not all(_LEAST_SCALE <= scale <= _LARGEST_SCALE for scale in self.scales):
            raise ValueError(f"scales must be some numbers from {_LEAST_SCALE} to {_LARGEST_SCALE}, not {self.scales}")


def groups(columns: int) -> tuple[int, ...]:
    """Sizes of a row's groups: as many of 128 as fit, then at most one of each smaller size, largest first.

    Raises ValueError unless columns is a positive multiple of 16.
    """
    if columns < 1 or columns % GROUPS[-1]:
        raise ValueError(f"columns must be a positive multiple of {GROUPS[-1]}, not {columns}")
    rest = columns % GROUPS[0]
    return (GROUPS[0],) * (columns // GROUPS[0]) + tuple(size for size in GROUPS[1:] if rest & size)


def _check_table(table: NDArray[Any], kind: type[np.generic], count: int) -> None:
    if table.dtype != kind or table.shape != (count,) or not table.flags.c_contiguous:
        raise ValueError(f"a table must be {np.dtype(kind)} ({count},), not {table.dtype} {table.shape}")
