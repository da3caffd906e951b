"""The format of one packed tensor, from what is declared and from the sizes on disk. They must agree."""

from math import prod
from typing import TYPE_CHECKING

from tqcli.codec.turboquant import BITS, bytes_per_group, groups
from tqcli.errors import InputError
from tqcli.formats.native_section import NativeFormat
from tqcli.formats.tq import Tq
from tqcli.runtime.headers import Pair

if TYPE_CHECKING:
    from tqcli.runtime.transformers.config import TqConfig


def format_of(pair: Pair, columns: int, config: "TqConfig") -> NativeFormat:
    """Format of a pair whose weight has `columns` columns. Raises InputError where sizes and words disagree."""
    declared = config.format_of(pair.name)
    if declared.format != pair.format:
        raise _disagree(pair, f"it is `{pair.format}`, and the configuration says `{declared.format}`")
    if isinstance(declared, Tq):
        return _by_sizes(pair, columns, declared, is_binding=config.is_binding)
    _check_sizes(pair, columns, declared)
    return declared


def _by_sizes(pair: Pair, columns: int, declared: Tq, *, is_binding: bool) -> Tq:
    """Published checkpoints mix bit widths without a word: there only the sizes count."""
    if (pair.codes.dtype, pair.scales.dtype) != ("U8", "F32"):
        raise _disagree(pair, "U8 and F32 are read")
    expected = groups(columns, declared.group_size)
    if pair.groups != expected:
        raise _disagree(pair, f"{columns} columns in groups of {declared.group_size} are {expected} norms a row")
    bits = {bytes_per_group(bits, declared.group_size): bits for bits in BITS}.get(_group_bytes(pair))
    if bits is None:
        raise _disagree(pair, f"no known bit width packs {declared.group_size} values like that")
    if is_binding and bits != declared.bits:
        raise _disagree(pair, f"the configuration says {declared.bits} bits")
    return declared.model_copy(update={"bits": bits})


def _group_bytes(pair: Pair) -> int:
    """Bytes that the codes of a group take; 0 where the sizes do not divide."""
    count, total = prod(pair.scales.shape), prod(pair.codes.shape)
    return total // count if count and total % count == 0 else 0


def _check_sizes(pair: Pair, columns: int, declared: NativeFormat) -> None:
    refusal = declared.refusal((pair.rows, columns))
    if refusal:
        raise _disagree(pair, refusal)
    wanted = declared.stored(pair.name, (pair.rows, columns), "BF16")
    for expected, found in zip(wanted, (pair.codes, pair.scales), strict=True):
        if (expected.dtype, expected.shape) != (found.dtype, found.shape):
            said = f"`{declared.label}` of {columns} columns"
            raise _disagree(pair, f"{said} has {expected.dtype} {list(expected.shape)}")


def _disagree(pair: Pair, why: str) -> InputError:
    found = ", ".join(f"{one.dtype} {list(one.shape)}" for one in (pair.codes, pair.scales))
    return InputError(f"packed tensor `{pair.name}` does not fit: {found}", why=why)
