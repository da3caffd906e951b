"""The blocks that a head vector is cut into. Arithmetic alone, so that a command line need not wait for torch."""

from tqcli.errors import InputError

MIN_BLOCK = 16


def block_size(head_size: int) -> int:
    """The numbers of a head vector that are rotated and scaled together: the largest power of two that divides it.

    Raises InputError where that is below 16: such blocks are too short to be normally distributed, and their scales
    would cost more than the codes.
    """
    block = head_size & -head_size
    if block < MIN_BLOCK:
        raise InputError(
            f"heads of {head_size} numbers cannot be compressed",
            why=f"the largest power of two that divides {head_size} is {block}, and at least {MIN_BLOCK} is needed",
            fix="kv=none",
        )
    return block
