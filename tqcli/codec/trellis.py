"""Everything that the bytes of a `trellis` tensor depend on: codebook, signs, and the scales that the encoder tries.

The format page is docs/trellis-format.md. Left out: how codes are found (the kernels), and where the codebooks come
from (`trellis_codebooks`).
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tq_kernels.trellis import GROUPS, TrellisTables

from tqcli.codec import hadamard
from tqcli.codec.trellis_codebooks import codebook, scale_candidates

WINDOWS = 256
Rotation = Literal["hadamard", "none"]


@lru_cache(maxsize=64)
def tables(bits: int, rotation: Rotation, seed: int, candidates: int, levels: str | None = None) -> TrellisTables:
    """The constants of one configuration; the arrays are read-only.

    levels: another codebook than the format's own, as `to_hex` writes it. ValueError on an unknown configuration.
    """
    signs = None
    if rotation == "hadamard":
        signs = hadamard.signs(GROUPS[0], seed)[0]
        signs.setflags(write=False)
    return TrellisTables(
        bits=bits,
        codebook=codebook(bits) if levels is None else from_hex(levels),
        signs=signs,
        scales=scale_candidates(bits, candidates),
    )


def to_hex(levels: NDArray[np.int8]) -> str:
    """A codebook as configurations hold it: two hexadecimal digits a window, in order, two's complement."""
    return levels.tobytes().hex()


def from_hex(text: str) -> NDArray[np.int8]:
    """int8 (256,), read-only. ValueError where the text is no codebook."""
    levels = np.frombuffer(bytes.fromhex(text), dtype=np.int8)
    if levels.shape != (WINDOWS,):
        raise ValueError(f"a codebook has {WINDOWS} levels, not {levels.size}")
    return levels
