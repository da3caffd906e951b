"""Bits, group size and seed of one packed tensor, from what is declared and from the sizes on disk. They must agree."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqcli.codec.turboquant import BITS, bytes_per_group, groups, tables
from tqcli.errors import InputError
from tqcli.runtime.transformers.headers import Pair

if TYPE_CHECKING:
    from tq_kernels.types import TqTables

    from tqcli.runtime.transformers.config import TqConfig


@dataclass(frozen=True)
class Geometry:
    """How one tensor is packed."""

    bits: int
    group_size: int
    seed: int

    @property
    def tables(self) -> "TqTables":
        """The constants that the kernels need."""
        return tables(self.bits, self.group_size, self.seed)

    def as_dict(self) -> dict[str, int]:
        """As in config.json and tq_config.json."""
        return {"bits": self.bits, "group_size": self.group_size, "seed": self.seed}


def geometry_of(pair: Pair, columns: int, config: "TqConfig") -> Geometry:
    """Geometry of a pair whose weight has `columns` columns. Raises InputError where sizes and words disagree.

    Published checkpoints mix bit widths without a word: there only the sizes count.
    """
    declared = config.geometry(pair.name)
    expected = groups(columns, declared.group_size)
    if pair.groups != expected:
        raise _disagree(pair, f"{columns} columns in groups of {declared.group_size} are {expected} norms a row")
    bits = {bytes_per_group(bits, declared.group_size): bits for bits in BITS}.get(pair.group_bytes)
    if bits is None:
        raise _disagree(pair, f"no known bit width packs {declared.group_size} values like that")
    if config.is_binding and bits != declared.bits:
        raise _disagree(pair, f"the configuration says {declared.bits} bits")
    return Geometry(bits, declared.group_size, declared.seed)


def _disagree(pair: Pair, why: str) -> InputError:
    return InputError(
        f"packed tensor `{pair.name}` does not fit: codes {list(pair.packed)}, norms {list(pair.norms)}",
        why=why,
    )
