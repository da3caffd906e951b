"""Codebooks of the trellis format: the value of each 8-bit window, frozen as literals.

An entry is an int8 in units of the deviation of a group's weights: a group is scaled so that its root mean square is
UNITS_PER_DEVIATION[bits] times a multiplier, paths are sought among the entries, and the multiplier whose path leaves
the least error after a least-squares scale wins. Entry w belongs to the window whose first bit in the stream is the
lowest bit of w. DRAFT: better tables of the same form will replace these.

Left out: how a path is found, scales and bytes.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

# fmt: off
CODEBOOKS: Mapping[int, tuple[int, ...]] = MappingProxyType({
    2: (
        58, -43, 16, -12, 34, -29, 3, -87, 35, 8, -18, -64, -4, 26, -38, 78,
        14, -15, 47, -51, -7, 69, -40, 24, -4, 25, 67, -33, -27, 4, 37, -71,
        6, -23, -60, 42, 124, -98, -8, 27, -56, 52, 11, -18, -39, 77, -6, 25,
        -12, 15, 50, -49, -40, -6, 25, 70, 49, -15, -53, 14, -26, -78, 4, 35,
        -46, -12, 55, 16, -77, 2, 36, -27, -83, 42, 11, -22, 25, 69, -6, -42,
        51, 12, -73, -20, 21, -40, -8, 67, 23, 110, -37, -7, 3, 36, -75, -26,
        38, 7, -21, -63, -39, -14, 20, 87, -17, -62, 44, 11, -4, -35, 26, 77,
        16, 53, -50, -14, -6, 25, 83, -37, -54, 13, -16, 50, 2, -28, 35, -107,
        -11, 18, -49, 58, -27, 35, -86, 4, -24, -60, 42, 7, 69, -40, 23, -6,
        -59, 47, -19, 10, 94, -6, 25, -37, 60, -35, -7, 20, 37, -73, -25, 6,
        -72, 42, 9, -22, -8, 14, 50, -39, 10, -19, -60, 42, 27, -4, 94, -34,
        55, -48, -13, 16, 23, 84, -35, -5, -17, 44, 12, -47, 35, 2, -81, -26,
        16, 53, -16, -58, 2, -100, -29, 36, 6, -20, -57, 42, -38, -5, 75, 24,
        -16, -52, 10, 41, -37, 24, 73, -4, -38, -4, 23, 61, -123, -25, 6, 38,
        -23, -71, 47, 9, 23, 52, -38, -6, 43, 11, -19, -59, 94, 26, -41, -4,
        -49, -13, 15, 53, 64, -41, -4, 24, 13, -48, 49, -13, -79, 33, -26, 4,
    ),
    3: (
        -79, 34, -46, -11, 17, 3, -26, 56, -6, 42, -21, 71, -90, 22, 8, -39,
        -63, -23, -39, 54, -9, 19, 35, 5, -62, 12, 27, -35, -3, 77, -18, 47,
        -47, 54, -27, 3, 32, 17, -10, -71, 8, 67, -6, -54, -35, 39, 23, -19,
        -41, -8, -22, -124, 7, 37, 60, 21, -36, 28, 49, -18, 13, -61, -3, 94,
        -29, -105, -13, 16, 54, 32, 3, -48, 23, -53, 9, -33, -18, 60, 41, -4,
        -25, 6, -8, -48, 21, 64, -86, 39, -19, 49, 97, -4, 29, -36, 12, -61,
        -13, -47, 2, 33, -103, 55, 18, -28, 43, -32, 26, -16, -1, -55, 69, 12,
        -10, 21, 5, -27, 38, -90, -46, 85, -4, 97, -61, 11, 48, -19, 27, -36,
        3, -26, 18, 56, -47, -74, 35, -11, 85, -16, 48, -2, 13, -34, -54, 29,
        4, 39, 20, -11, 63, -45, -27, -69, 11, -57, -34, 27, 74, -4, 46, -18,
        19, -10, 37, -80, -26, -44, 60, 4, -59, -2, 108, 12, 29, -18, -35, 50,
        18, 83, 36, 3, -76, -25, -11, -44, 26, -33, -17, 44, -53, 10, 71, -4,
        37, 3, 81, -45, -11, -26, -78, 19, -36, 11, -59, 26, 46, -5, -19, 124,
        33, -69, 57, 16, -45, -11, 2, -26, 44, -16, -3, 68, -32, 25, -54, 11,
        63, 18, -72, -26, 4, -11, -44, 36, -20, 25, -37, 43, 66, 9, -5, -62,
        52, -40, -66, 32, -24, 4, 17, -10, 78, -2, 11, -91, -16, 44, -34, 26,
    ),
    4: (
        -40, 5, 69, 32, -95, 25, -57, -7, 12, -14, 18, 50, -30, -21, -1, 40,
        -32, 12, -122, 42, -61, 33, -44, -1, 19, -7, 26, 67, -23, -15, 5, 51,
        -24, 19, -63, 55, -46, 43, -34, 5, 26, -1, 34, -89, -16, -8, 12, 67,
        -17, 26, -46, 78, -35, 55, -26, 11, 35, 5, 44, -61, -10, -2, 19, -86,
        -11, 35, -35, -80, -27, 75, -18, 18, 46, 11, 59, -45, -4, 4, 26, -58,
        -4, 46, -26, -54, -19, -71, -11, 26, 61, 18, 87, -34, 3, 10, 35, -44,
        2, 61, -19, -42, -12, -53, -5, 34, 84, 25, -68, -26, 9, 17, 45, -33,
        8, 124, -12, -32, -5, -41, 1, 43, -66, 32, -52, -18, 15, 23, 58, -25,
        15, -67, -5, -24, 1, -32, 8, 57, -53, 40, -40, -11, 22, 30, 106, -18,
        22, -54, 1, -17, 8, -23, 15, 72, -41, 51, -31, -4, 30, 39, -76, -11,
        31, -39, 8, -10, 14, -16, 22, -81, -31, 71, -23, 2, 40, 50, -50, -4,
        41, -30, 14, -4, 21, -10, 29, -48, -23, -60, -16, 8, 54, 91, -39, 2,
        56, -22, 21, 3, 28, -3, 38, -37, -15, -46, -9, 14, 97, -60, -29, 8,
        79, -14, 29, 10, 37, 4, 48, -28, -8, -36, -2, 22, -70, -46, -20, 15,
        -75, -7, 37, 16, 48, 11, 64, -20, -1, -28, 5, 29, -50, -37, -13, 22,
        -51, -1, 49, 24, 64, 17, -105, -14, 5, -21, 11, 38, -39, -29, -7, 30,
    ),
})
# fmt: on

# Codebook units a standard deviation of the weights, at multiplier 1.
UNITS_PER_DEVIATION: Mapping[int, float] = MappingProxyType({2: 42.742, 3: 37.555, 4: 36.622})

# By bits, then by how many an encoder can afford: the multipliers, best to have first, that lose least together.
_CANDIDATES: Mapping[int, Mapping[int, tuple[float, ...]]] = MappingProxyType(
    {
        2: {
            1: (1.0,),
            2: (0.96, 1.04),
            3: (0.94, 1.0, 1.06),
            5: (0.9, 0.95, 1.0, 1.05, 1.1),
            7: (0.88, 0.92, 0.96, 1.0, 1.04, 1.08, 1.12),
        },
        3: {
            1: (1.0,),
            2: (0.96, 1.04),
            3: (0.94, 1.0, 1.06),
            5: (0.9, 0.95, 1.0, 1.05, 1.1),
            7: (0.88, 0.92, 0.96, 1.0, 1.04, 1.08, 1.12),
        },
        4: {
            1: (1.0,),
            2: (0.96, 1.04),
            3: (0.94, 1.0, 1.06),
            5: (0.9, 0.95, 1.0, 1.05, 1.1),
            7: (0.88, 0.92, 0.96, 1.0, 1.04, 1.08, 1.12),
        },
    }
)

SCALES: Mapping[int, tuple[float, ...]] = MappingProxyType({bits: counts[3] for bits, counts in _CANDIDATES.items()})


def codebook(bits: int) -> NDArray[np.int8]:
    """The value of every window: int8 (256,), not writable; bits 2, 3 or 4, else ValueError."""
    table = np.array(CODEBOOKS[_known(bits)], dtype=np.int8)
    table.flags.writeable = False
    return table


def scale_candidates(bits: int, count: int) -> tuple[float, ...]:
    """The `count` multipliers to try on a group, 1, 2, 3, 5 or 7 of them; other counts and bits raise ValueError."""
    counts = _CANDIDATES[_known(bits)]
    if count not in counts:
        raise ValueError(f"count is {count}, expected one of {sorted(counts)}")
    return counts[count]


def _known(bits: int) -> int:
    if bits not in CODEBOOKS:
        raise ValueError(f"bits is {bits}, expected 2, 3 or 4")
    return bits
