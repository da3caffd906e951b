"""What weights have to agree on: engines join q, k and v into one matrix, and run all experts of a layer as one stack.

So they are stored in one format, or all kept; and where a format has a scale for a whole matrix, they share it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tqcli.architectures.base import Role
from tqcli.decision import Decision, kept
from tqcli.errors import InputError
from tqcli.formats.base import AbsmaxFormat
from tqcli.recipe import Recipe
from tqcli.weights import Weight

# All experts of a layer run as one stack, whatever they are fused with.
STACKED: tuple[Role, ...] = ("expert_down",)
_MATRIX = 2


def levelled(
    decisions: tuple[Decision, ...], groups: Sequence[tuple[Role, ...]], recipe: Recipe
) -> tuple[Decision, ...]:
    """Where a format cannot hold one weight of those that must be stored alike, it holds none of them."""
    reasons: dict[tuple[str, tuple[Role, ...]], str] = {}
    for decision in decisions:
        for group in groups:
            if decision.refused and set(decision.role.roles) & set(group):
                reasons.setdefault((decision.role.block, group), f"{decision.why}, and all are stored alike")
    if not reasons:
        return decisions
    return tuple(_level(decision, groups, reasons, recipe) for decision in decisions)


def _level(
    decision: Decision,
    groups: Sequence[tuple[Role, ...]],
    reasons: Mapping[tuple[str, tuple[Role, ...]], str],
    recipe: Recipe,
) -> Decision:
    keys = [(decision.role.block, group) for group in groups if set(decision.role.roles) & set(group)]
    why = next((reasons[key] for key in keys if key in reasons), "")
    if not why or decision.format is None or len(decision.weight.shape) < _MATRIX:
        return decision
    return replace(kept(decision.weight, recipe, why), refused=True)


def check_fused(decisions: Sequence[Decision], fused: tuple[tuple[Role, ...], ...]) -> None:
    """Engines join q, k, v and gate, up into one matrix, and stack experts: one format for all of it."""
    for group in fused:
        blocks: dict[str, dict[str, Decision]] = {}
        for decision in decisions:
            if len(decision.weight.shape) >= 2 and set(decision.role.roles) & set(group):
                blocks.setdefault(decision.role.block, {}).setdefault(_fusible(decision), decision)
        for block, labels in blocks.items():
            if len(labels) > 1:
                raise _mixed(block, group, labels.values())


def _fusible(decision: Decision) -> str:
    """Equal for tensors that can lie in one matrix. Kept ones can, whatever float they are in."""
    return decision.format.label if decision.format else "kept"


def _mixed(block: str, group: tuple[Role, ...], decisions: Iterable[Decision]) -> InputError:
    what = f"`{block}` would mix formats inside one fused matrix"
    why = ", ".join(f"`{one.weight.name}` {one.label}" + (f" ({one.why})" if one.why else "") for one in decisions)
    return InputError(what, why=why, fix=f"give every {', '.join(group)} of a layer the same format in the recipe")


def shared(decisions: tuple[Decision, ...], fused: tuple[tuple[Role, ...], ...]) -> tuple[Decision, ...]:
    """Note which weights share a scale: those of one layer, or one expert, that engines join into one matrix."""
    # Asked once a format: a model has tens of thousands of decisions.
    sharing = {one for one in {decision.format for decision in decisions} if isinstance(one, AbsmaxFormat)}
    if not sharing:
        return decisions
    groups: dict[tuple[str, int | None, tuple[Role, ...]], list[Weight]] = {}
    for decision in decisions:
        if decision.format in sharing:
            groups.setdefault(_scale_group(decision.weight, fused), []).append(decision.weight)
    return tuple(
        replace(one, sharing=tuple(groups[_scale_group(one.weight, fused)])) if one.format in sharing else one
        for one in decisions
    )


def _scale_group(weight: Weight, fused: tuple[tuple[Role, ...], ...]) -> tuple[str, int | None, tuple[Role, ...]]:
    role = weight.role
    joined = next((group for group in fused if set(group) & set(role.roles)), None)
    return (role.block, role.expert, joined) if joined else (weight.name, role.expert, role.roles)
