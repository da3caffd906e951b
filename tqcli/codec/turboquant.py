"""Everything that the bytes of a `tq` tensor depend on: the constants of one width, group size and seed."""

from functools import lru_cache

from tq_kernels.types import TqTables

from tqcli.codec import hadamard, lloyd_max, scale

BITS = (2, 3, 4)
GROUP_SIZES = (32, 64, 128, 256)
MAX_SEED = 2**32 - 1


@lru_cache(maxsize=64)
def tables(bits: int, group_size: int, seed: int) -> TqTables:
    """The constants of one configuration; the arrays are read-only. ValueError on an unknown configuration."""
    _check(bits, group_size)
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be from 0 to {MAX_SEED}, not {seed}")
    signs_in, signs_out = hadamard.signs(group_size, seed)
    levels = lloyd_max.centroids(bits, group_size)
    result = TqTables(
        bits=bits,
        group_size=group_size,
        signs_in=signs_in,
        signs_out=signs_out,
        centroids=levels,
        boundaries=lloyd_max.boundaries(levels),
        search_boundaries=scale.search_boundaries(bits),
        search_centroids=scale.search_centroids(bits),
    )
    for array in result.arrays():
        array.setflags(write=False)
    return result


def bytes_per_group(bits: int, group_size: int) -> int:
    """Bytes that the codes of one group take; its float32 norm is stored apart."""
    _check(bits, group_size)
    return bits * group_size // 8


def groups(columns: int, group_size: int) -> int:
    """Groups that a row of `columns` weights takes; the last one is padded with zeros."""
    _check(BITS[0], group_size)
    if columns < 1:
        raise ValueError(f"columns must be positive, not {columns}")
    return -(-columns // group_size)


def _check(bits: int, group_size: int) -> None:
    if bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, not {bits}")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group size must be one of {GROUP_SIZES}, not {group_size}")
