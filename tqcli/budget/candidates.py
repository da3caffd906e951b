"""What may be chosen for a model: groups of weights that are stored alike, and the widths that each group can have.

A candidate is the format that the recipe gives a weight, with other `bits`. What the recipe keeps stays kept. Left out:
what a width costs in error (`sampling`, `sensitivity`) and which is taken (`allocate`).
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from pydantic import BaseModel

from tqcli.agreement import STACKED
from tqcli.architectures.base import Role
from tqcli.arrangement import Arrangement
from tqcli.decision import Decision
from tqcli.errors import InputError
from tqcli.formats.base import Format
from tqcli.plan import Plan


@dataclass(frozen=True)
class Candidate:
    """A format with its width, and the bytes of a group's weights stored so, without headers."""

    bits: int
    format: Format
    nbytes: int


@dataclass(frozen=True)
class Group:
    """Weights that get one width. layer: None outside of the decoder. present: what the recipe alone would give."""

    roles: tuple[Role, ...]
    layer: int | None
    decisions: tuple[Decision, ...]
    candidates: tuple[Candidate, ...]
    present: Format

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(one.weight.parameters for one in self.decisions)


def find_groups(plan: Plan, arrangement: Arrangement) -> tuple[Group, ...]:
    """Every weight that the plan packs with a format that has several widths, in the order of the plan.

    Raises InputError where there is none.
    """
    alike = (*plan.architecture.fused, STACKED, *arrangement.alike)
    groups = [group for members in _together(plan.packed, alike) if (group := _group(members))]
    if not groups:
        what = "nothing of this recipe can be had in other widths"
        raise InputError(what, fix="a recipe whose format has `bits`, such as `tq3`")
    return tuple(groups)


def with_bits(stored_as: Format, bits: int) -> Format:
    """The same format with another width. Options that follow the width unless they are given follow it."""
    if not isinstance(stored_as, BaseModel):
        raise TypeError(f"{stored_as.label} is no option of a recipe")
    given = stored_as.model_dump(exclude_unset=True)
    changed: Format = type(stored_as).model_validate({**given, "bits": bits})
    return changed


def widths(stored_as: Format) -> tuple[int, ...]:
    """The values that the option `bits` of a format may take; none where it has no such option."""
    field = type(stored_as).model_fields.get("bits") if isinstance(stored_as, BaseModel) else None
    return tuple(sorted(one for one in get_args(field.annotation) if isinstance(one, int))) if field else ()


def _group(members: Sequence[Decision]) -> Group | None:
    """None where the weights have no choice."""
    formats = {one.format for one in members}
    present = members[0].format
    if present is None or len(formats) != 1:
        return None
    candidates = [one for bits in widths(present) if (one := _candidate(members, present, bits))]
    if len(candidates) < 2:
        return None
    found = {role for one in members for role in one.role.roles}
    roles = tuple(role for role in get_args(Role) if role in found)
    return Group(roles, members[0].role.layer, tuple(members), tuple(candidates), present)


def _candidate(members: Iterable[Decision], present: Format, bits: int) -> Candidate | None:
    """None where the plan would keep one of the weights instead."""
    stored_as = present if bits == getattr(present, "bits", None) else with_bits(present, bits)
    total = 0
    for weight in (one.weight for one in members):
        nbytes = sum(part.nbytes for part in stored_as.stored(weight.name, weight.shape, weight.dtype))
        if stored_as.refusal(weight.shape) or nbytes >= weight.nbytes:
            return None
        total += nbytes
    return Candidate(bits, stored_as, total)


def _together(decisions: Sequence[Decision], alike: Sequence[tuple[Role, ...]]) -> list[list[Decision]]:
    """Decisions joined where engines want one format, or where a recipe cannot tell them apart by name."""
    parents = list(range(len(decisions)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    first: dict[Hashable, int] = {}
    for number, decision in enumerate(decisions):
        for key in _keys(decision, alike):
            a, b = root(first.setdefault(key, number)), root(number)
            parents[max(a, b)] = min(a, b)
    found: dict[int, list[Decision]] = {}
    for number, decision in enumerate(decisions):
        found.setdefault(root(number), []).append(decision)
    return list(found.values())


def _keys(decision: Decision, alike: Sequence[tuple[Role, ...]]) -> Iterable[Hashable]:
    role = decision.role
    yield decision.weight.selector
    for group in alike:
        if set(role.roles) & set(group):
            yield role.block, group
