"""The plan: one decision a tensor, made from names and shapes alone. No weight is read and nothing is written.

What the plan says of sizes is what the writer writes: the sum of `Format.stored` and of the headers, to the byte.
Left out: which weights the output has (`arrangement`), and the files around them (`layouts`).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

from tqcli.architectures.base import Architecture, Role, TensorRole
from tqcli.arrangement import Arrangement, LeftOut
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.stored import Stored
from tqcli.checkpoint.writer import ShardLayout
from tqcli.errors import InputError
from tqcli.formats.base import AbsmaxFormat, Format
from tqcli.recipe import Keep, Override, Recipe
from tqcli.weights import Weight

_ENCODABLE = ("BF16", "F16", "F32")
# All experts of a layer run as one stack, whatever they are fused with.
_STACKED: tuple[Role, ...] = ("expert_down",)
_MATRIX = 2
_TOO_SMALL = "packing would not shrink it"
_EXPERT_ROLES: frozenset[Role] = frozenset(("expert_gate", "expert_up", "expert_down"))


@dataclass(frozen=True)
class Decision:
    """What one weight becomes. `format` is None where it is kept.

    refused: kept because the format cannot hold it. by_override: an override chose the format, not the default.
    sharing: the weights, this one among them, whose greatest magnitude the format must know.
    """

    weight: Weight
    format: Format | None
    stored: tuple[Stored, ...]
    why: str
    refused: bool = False
    by_override: bool = False
    sharing: tuple[Weight, ...] = ()

    @property
    def role(self) -> TensorRole:
        """What the weight does."""
        return self.weight.role

    @property
    def label(self) -> str:
        """What it becomes, for tables."""
        return self.format.label if self.format else self.stored[0].dtype.lower()

    @property
    def nbytes(self) -> int:
        """Bytes of data on disk."""
        return sum(stored.nbytes for stored in self.stored)


@dataclass(frozen=True)
class Plan:
    """A recipe applied to one model.

    fingerprint: the source's at planning, kept when its files are fetched later. layout: of the output folder.
    left_out: weights of the source that the layout has no place for.
    """

    source: Checkpoint
    fingerprint: str
    architecture: Architecture
    recipe: Recipe
    layers: int
    layout: str
    decisions: tuple[Decision, ...]
    left_out: tuple[LeftOut, ...]
    shards: tuple[ShardLayout, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Decision]:
        """Weight's name in the output -> decision."""
        return {decision.weight.name: decision for decision in self.decisions}

    @property
    def source_bytes(self) -> int:
        """Bytes of the weights that are converted, as the source has them; decoded, where it is compressed."""
        return sum(decision.weight.nbytes for decision in self.decisions)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in the output."""
        return sum(decision.nbytes for decision in self.decisions)

    @property
    def file_bytes(self) -> int:
        """Bytes of the output's safetensors files, headers included."""
        return sum(shard.file_bytes for shard in self.shards)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(decision.weight.parameters for decision in self.decisions)

    @property
    def packed(self) -> tuple[Decision, ...]:
        """The decisions that compress a weight."""
        return tuple(decision for decision in self.decisions if decision.format)


def make_plan(
    source: Checkpoint,
    architecture: Architecture,
    recipe: Recipe,
    arrangement: Arrangement,
    lay_out: Callable[[Sequence[Decision]], tuple[ShardLayout, ...]],
) -> Plan:
    """Decide on every weight of the arrangement; `lay_out` then says which file each goes to.

    Raises InputError where there is nothing to decide on, a selector matches nothing or one fused matrix would mix
    formats.
    """
    if not arrangement.weights:
        raise InputError(f"`{source.storage.label}` holds no tensors", fix="name a folder that holds weights")
    layers = architecture.layers(source.config)
    weights = arrangement.weights
    _check_selectors(recipe, [*weights, *(one.weight for one in arrangement.left_out)], layers)
    groups = (*architecture.fused, _STACKED, *arrangement.alike)
    decisions = _levelled(tuple(_decide(weight, recipe, layers) for weight in weights), groups, recipe)
    _check_used(recipe, decisions, layers)
    _check_fused(decisions, groups)
    _check_names(decisions)
    decisions = _shared(decisions, architecture.fused)
    return Plan(
        source=source,
        fingerprint=source.fingerprint(),
        architecture=architecture,
        recipe=recipe,
        layers=layers,
        layout=arrangement.layout,
        decisions=decisions,
        left_out=arrangement.left_out,
        shards=lay_out(decisions),
    )


def _decide(weight: Weight, recipe: Recipe, layers: int) -> Decision:
    stored_as, why = _choose(weight, recipe, layers)
    if isinstance(stored_as, Keep):
        return _kept(weight, recipe, why)
    if refusal := stored_as.refusal(weight.shape) or _cut_blocks(weight, stored_as):
        return replace(_kept(weight, recipe, refusal), refused=True)
    stored = stored_as.stored(weight.name, weight.shape, weight.dtype)
    if sum(part.nbytes for part in stored) >= weight.nbytes:
        return replace(_kept(weight, recipe, _TOO_SMALL), refused=True)
    return Decision(weight, stored_as, stored, why, by_override=_first_fit(recipe, weight, layers) is not None)


def _levelled(
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
    return replace(_kept(decision.weight, recipe, why), refused=True)


def _cut_blocks(weight: Weight, stored_as: Format) -> str:
    """Why a weight that is gathered from several places cannot be cut into blocks of rows, or nothing."""
    block = stored_as.block_rows
    return "its blocks would cross tensors" if any(run.rows % block for run in weight.runs[:-1]) else ""


def _choose(weight: Weight, recipe: Recipe, layers: int) -> tuple[Format | Keep, str]:
    """The first override that fits, else the default. Protection yields to overrides that name a role or a tensor."""
    override = _first_fit(recipe, weight, layers)
    named = override is not None and bool(override.roles or override.tensors)
    if not named and set(weight.role.roles) & set(recipe.protect):
        return Keep(), "protected"
    if reason := _no_matrix(weight, named=bool(override and override.tensors)):
        return Keep(), reason
    return (override.stored_as, override.why) if override else (recipe.stored_as, "")


def _no_matrix(weight: Weight, *, named: bool) -> str:
    """Why a weight cannot be packed, or nothing. `named`: an override selects it by its own name."""
    if weight.role.roles == ("norm",):
        return "not a weight matrix"
    if weight.role.roles == ("other",) and not named:
        return "no known role"
    experts = len(weight.shape) == 3 and bool(_EXPERT_ROLES & set(weight.role.roles))
    if len(weight.shape) != 2 and not experts:
        return "not a weight matrix"
    if weight.parameters == 0:
        return "empty"
    if weight.dtype not in _ENCODABLE:
        return f"{weight.dtype.lower()} is not encoded"
    return ""


def _kept(weight: Weight, recipe: Recipe, why: str) -> Decision:
    halved = recipe.keep_dtype == "float16" and weight.dtype in _ENCODABLE
    dtype = "F16" if halved else weight.dtype
    return Decision(weight, None, (Stored(weight.name, dtype, weight.shape),), why)


def _first_fit(recipe: Recipe, weight: Weight, layers: int) -> Override | None:
    return next((one for one in recipe.override if _fits(one, weight, layers)), None)


def _fits(override: Override, weight: Weight, layers: int) -> bool:
    role = weight.role
    by_role = not override.roles or bool(set(override.roles) & set(role.roles))
    by_name = not override.tensors or any(_named(weight, pattern) for pattern in override.tensors)
    return by_role and by_name and (override.layers is None or override.layers.holds(role.layer, layers))


def _named(weight: Weight, pattern: str) -> bool:
    """Whether a pattern fits the weight's name in the source, or the one that it gets."""
    return matches(weight.selector, pattern) or (weight.name != weight.selector and matches(weight.name, pattern))


def matches(name: str, pattern: str) -> bool:
    """Whether a tensor's name, with or without `.weight`, fits a glob or a `re:` pattern."""
    names = (name, name.removesuffix(".weight"))
    if not pattern.startswith("re:"):
        return any(fnmatchcase(one, pattern) for one in names)
    return any(re.fullmatch(pattern[3:], one) for one in names)


def _check_selectors(recipe: Recipe, weights: Sequence[Weight], layers: int) -> None:
    """A selector that matches nothing is a mistake in the recipe, or the wrong recipe for the model."""
    for override in recipe.override:
        for pattern in override.tensors:
            _check_pattern(pattern, weights)
        if not override.optional and not any(_fits(override, weight, layers) for weight in weights):
            raise InputError(f"an override matches no tensor of this model: {_selector(override)}", why=override.why)


def _check_used(recipe: Recipe, decisions: Sequence[Decision], layers: int) -> None:
    """An override that fits tensors and changes none of them is as dead as one that fits nothing."""
    used = set()
    for decision in decisions:
        override = _first_fit(recipe, decision.weight, layers)
        if override and (decision.format or decision.refused or isinstance(override.stored_as, Keep)):
            used.add(recipe.override.index(override))
    for number, override in enumerate(recipe.override):
        if number not in used and not override.optional:
            why = "earlier overrides take its tensors, or those are protected, or no weight matrices"
            raise InputError(f"an override changes nothing in this model: {_selector(override)}", why=why)


def _check_names(decisions: Sequence[Decision]) -> None:
    """A source may hold a name that a packed tensor would take."""
    seen: set[str] = set()
    for stored in (stored for decision in decisions for stored in decision.stored):
        if stored.name in seen:
            raise InputError(f"two tensors would be called `{stored.name}`", why="the source has one of that name")
        seen.add(stored.name)


def _selector(override: Override) -> str:
    parts = [f"`{name}`" for name in (*override.roles, *override.tensors)]
    if override.layers:
        parts.append(f"first {override.layers.first} and last {override.layers.last} layers")
    return ", ".join(parts)


def _check_pattern(pattern: str, weights: Sequence[Weight]) -> None:
    try:
        found = any(_named(weight, pattern) for weight in weights)
    except re.error as error:
        raise InputError(f"`{pattern}` is not a regular expression", why=str(error)) from error
    if not found:
        fix = "`tq inspect MODEL --names` lists the names"
        raise InputError(f"pattern `{pattern}` matches no tensor of this model", fix=fix)


def _check_fused(decisions: Sequence[Decision], fused: tuple[tuple[Role, ...], ...]) -> None:
    """Engines join q, k, v and gate, up into one matrix, and stack experts: one format for all of it."""
    for group in fused:
        blocks: dict[str, dict[str, Decision]] = {}
        for decision in decisions:
            if len(decision.weight.shape) >= 2 and set(decision.role.roles) & set(group):
                blocks.setdefault(decision.role.block, {}).setdefault(_fusible(decision), decision)
        for block, labels in blocks.items():
            if len(labels) > 1:
                raise _mixed(block, group, labels.values())


def _shared(decisions: tuple[Decision, ...], fused: tuple[tuple[Role, ...], ...]) -> tuple[Decision, ...]:
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


def _fusible(decision: Decision) -> str:
    """Equal for tensors that can lie in one matrix. Kept ones can, whatever float they are in."""
    return decision.format.label if decision.format else "kept"


def _mixed(block: str, group: tuple[Role, ...], decisions: Iterable[Decision]) -> InputError:
    what = f"`{block}` would mix formats inside one fused matrix"
    why = ", ".join(f"`{one.weight.name}` {one.label}" + (f" ({one.why})" if one.why else "") for one in decisions)
    return InputError(what, why=why, fix=f"give every {', '.join(group)} of a layer the same format in the recipe")
