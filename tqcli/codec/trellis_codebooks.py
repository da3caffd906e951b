"""Codebooks of the trellis format: the number of each 8-bit window, frozen as literals.

Trained on normal pseudo-random numbers only, by `scripts/train_trellis`, which gives the same numbers again; what was
tried is in docs/trellis-search.md. An inverted window has the negative number. A group is scaled so that its root mean
square is UNITS_PER_DEVIATION[bits] units of the codebook, then by each candidate of `scale_candidates`; the candidate
whose best path leaves the least error after a least-squares scale wins.

Relative squared errors of 8.4 million normal weights, groups of 128, before the scale is rounded:

    bits   weight in bits   1 candidate        2        3        5        7
       2            2.125       0.06950  0.06871  0.06847  0.06833  0.06829
       3            3.125       0.01837  0.01794  0.01778  0.01765  0.01759
       4            4.125       0.00494  0.00475  0.00466  0.00459  0.00455

Left out: how a path is found, scales and bytes.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

# fmt: off
CODEBOOKS: Mapping[int, tuple[int, ...]] = MappingProxyType({
    2: (
        42, -24, 7, -57, 69, -43, -6, 24, -39, -7, 55, 18, -20, 43, 9, -87,
        80, -7, -38, 24, 7, -24, 40, -66, 36, 4, -31, -123, 60, 21, -10, -48,
        -61, 42, 9, -17, -40, 93, 25, -5, -40, -9, 68, 21, 8, -96, 41, -26,
        -38, 23, -7, 58, 11, -17, 39, -58, 5, 39, -68, -25, -40, 22, 86, -8,
        -56, 6, 41, -19, -40, -7, 23, 90, -7, 23, -44, 57, 10, -85, 44, -23,
        -38, 25, -5, 66, 40, 6, -60, -21, -67, 37, 3, -27, -113, 69, 17, -15,
        -16, -54, 47, 18, -5, -37, 66, 23, -8, 19, -38, 58, 38, -28, -74, 4,
        -5, 75, 24, -40, 45, 11, -91, -21, 38, -65, -23, 5, -9, 62, -39, 19,
        -19, 39, -62, 9, -5, 23, 65, -38, 21, 91, -11, -45, 40, -24, -75, 5,
        -4, 74, 28, -38, -58, 38, -19, 8, -23, -66, 37, 5, -18, -47, 54, 16,
        15, -17, -69, 113, 27, -3, -37, 67, 21, 60, -6, -40, -66, 5, -25, 38,
        23, -44, 85, -10, -57, 44, -23, 7, -90, -23, 7, 40, 19, -41, -6, 56,
        8, -86, -22, 40, 25, 68, -39, -5, 58, -39, 17, -11, -58, 7, -23, 38,
        26, -41, 96, -8, -21, -68, 9, 40, 5, -25, -93, 40, 17, -9, -42, 61,
        48, 10, -21, -60, 123, 31, -4, -36, 66, -40, 24, -7, -24, 38, 7, -80,
        87, -9, -43, 20, -18, -55, 7, 39, -24, 6, 43, -69, 57, -7, 24, -42,
    ),
    3: (
        -28, -84, -12, 36, 3, 65, 18, -49, 43, -3, -34, -56, 71, 26, 11, -17,
        34, 3, -10, -42, -65, 55, 18, -23, 76, -4, -38, 11, -20, 28, -62, 47,
        -12, -47, 2, 54, 17, -82, 34, -28, 92, 13, -15, -32, -51, 49, 29, -1,
        58, 18, 4, -25, -42, -71, 35, -9, -67, 10, -20, 27, -5, 48, -38, 127,
        2, -26, 16, -109, 33, -46, 56, -11, -56, 29, -1, -16, -32, 95, 50, 13,
        -83, 36, 20, -10, -25, -45, 58, 5, -37, 25, -5, 45, 9, 104, -21, -62,
        18, -9, 35, -43, 56, -25, -76, 5, -35, 48, 13, -2, -17, -64, 92, 28,
        -47, 66, 38, 4, -11, -26, -80, 20, -20, 43, 9, 73, 24, -64, -6, -37,
        37, 6, 64, -24, -73, -9, -43, 20, -20, 80, 26, 11, -4, -38, -66, 47,
        -28, -92, 64, 17, 2, -13, -48, 35, -5, 76, 25, -56, 43, -35, 9, -18,
        62, 21, -104, -9, -45, 5, -25, 37, -5, -58, 45, 25, 10, -20, -36, 83,
        -13, -50, -95, 32, 16, 1, -29, 56, 11, -56, 46, -33, 109, -16, 26, -2,
        -127, 38, -48, 5, -27, 20, -10, 67, 9, -35, 71, 42, 25, -4, -18, -58,
        1, -29, -49, 51, 32, 15, -13, -92, 28, -34, 82, -17, -54, -2, 47, 12,
        -47, 62, -28, 20, -11, 38, 4, -76, 23, -18, -55, 65, 42, 10, -3, -34,
        17, -11, -26, -71, 56, 34, 3, -43, 49, -18, -65, -3, -36, 12, 84, 28,
    ),
    4: (
        40, 68, 0, -13, 30, -38, -64, -6, 14, -76, 51, -21, 22, 7, -47, -29,
        53, -74, 8, -5, 41, -28, -46, 1, 23, -58, 71, -13, 31, 15, -36, -20,
        127, -58, 16, 2, 53, -19, -35, 9, 32, -45, -72, -5, 41, 24, -26, -12,
        -79, -45, 24, 9, 83, -12, -26, 16, 42, -35, -59, 2, 54, 32, -19, -5,
        -59, -35, 32, 16, -111, -5, -19, 24, 55, -26, -46, 9, 95, 42, -12, 2,
        -46, -27, 41, 23, -61, 2, -12, 31, 101, -19, -35, 16, -81, 52, -5, 9,
        -36, -19, 52, 30, -47, 8, -5, 40, -86, -12, -27, 22, -61, 66, 1, 15,
        -28, -13, 66, 38, -37, 14, 0, 49, -66, -6, -20, 29, -49, -90, 7, 21,
        -21, -7, 90, 49, -29, 20, 6, 66, -49, 0, -14, 37, -38, -66, 13, 28,
        -15, -1, -66, 61, -22, 27, 12, 86, -40, 5, -8, 47, -30, -52, 19, 36,
        -9, 5, -52, 81, -16, 35, 19, -101, -31, 12, -2, 61, -23, -41, 27, 46,
        -2, 12, -42, -95, -9, 46, 26, -55, -24, 19, 5, 111, -16, -32, 35, 59,
        5, 19, -32, -54, -2, 59, 35, -42, -16, 26, 12, -83, -9, -24, 45, 79,
        12, 26, -24, -41, 5, 72, 45, -32, -9, 35, 19, -53, -2, -16, 58, -127,
        20, 36, -15, -31, 13, -71, 58, -23, -1, 46, 28, -41, 5, -8, 74, -53,
        29, 47, -7, -22, 21, -51, 76, -14, 6, 64, 38, -30, 13, 0, -68, -40,
    ),
})
# fmt: on

# Units of a codebook in one root mean square of a group, at multiplier 1.
UNITS_PER_DEVIATION: Mapping[int, float] = MappingProxyType({2: 41.876, 3: 39.106, 4: 37.888})

# By bits, then by how many an encoder can afford: the multipliers, ascending, that lose least together.
_CANDIDATES: Mapping[int, Mapping[int, tuple[float, ...]]] = MappingProxyType(
    {
        2: {
            1: (0.998,),
            2: (0.958, 1.08),
            3: (0.917, 0.998, 1.1),
            5: (0.856, 0.917, 0.978, 1.059, 1.141),
            7: (0.835, 0.896, 0.937, 0.978, 1.039, 1.1, 1.182),
        },
        3: {
            1: (1.007,),
            2: (0.967, 1.068),
            3: (0.947, 1.027, 1.108),
            5: (0.866, 0.927, 0.987, 1.047, 1.128),
            7: (0.866, 0.927, 0.967, 1.007, 1.047, 1.108, 1.168),
        },
        4: {
            1: (0.935,),
            2: (0.916, 0.992),
            3: (0.897, 0.973, 1.05),
            5: (0.878, 0.935, 0.973, 1.011, 1.069),
            7: (0.84, 0.897, 0.935, 0.973, 1.011, 1.05, 1.107),
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
