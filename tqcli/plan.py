"""The plan: one decision a tensor, made from names and shapes alone. No weight is read and nothing is written.

What the plan says of sizes is what the writer writes: the sum of `Format.stored` and of the headers, to the byte.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from tqcli.architectures.base import Architecture, Role, TensorRole
from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.stored import Stored
from tqcli.checkpoint.writer import ShardLayout, lay_out_shards
from tqcli.errors import InputError
from tqcli.formats.tq import Tq
from tqcli.recipe import Keep, Override, Recipe

_ENCODABLE = ("BF16", "F16", "F32")
# All experts of a layer run as one stack, whatever they are fused with.
_STACKED: tuple[Role, ...] = ("expert_down",)
_TOO_SMALL = "packing would not shrink it"
_EXPERT_ROLES: frozenset[Role] = frozenset(("expert_gate", "expert_up", "expert_down"))


@dataclass(frozen=True)
class Decision:
    """What one source tensor becomes. `tq` is None where the tensor is kept."""

    tensor: TensorInfo
    role: TensorRole
    tq: Tq | None
    stored: tuple[Stored, ...]
    why: str

    @property
    def label(self) -> str:
        """What it becomes, for tables."""
        return self.tq.label if self.tq else self.stored[0].dtype.lower()

    @property
    def nbytes(self) -> int:
        """Bytes of data on disk."""
        return sum(stored.nbytes for stored in self.stored)


@dataclass(frozen=True)
class Plan:
    """A recipe applied to one model. fingerprint: the source's at planning, kept when its files are fetched later."""

    source: Checkpoint
    fingerprint: str
    architecture: Architecture
    recipe: Recipe
    layers: int
    decisions: tuple[Decision, ...]
    shards: tuple[ShardLayout, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Decision]:
        """Source tensor name -> decision."""
        return {decision.tensor.name: decision for decision in self.decisions}

    @property
    def source_bytes(self) -> int:
        """Bytes of weights in the source."""
        return sum(decision.tensor.nbytes for decision in self.decisions)

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
        return sum(decision.tensor.parameters for decision in self.decisions)

    @property
    def packed(self) -> tuple[Decision, ...]:
        """The decisions that change a tensor."""
        return tuple(decision for decision in self.decisions if decision.tq)


def make_plan(source: Checkpoint, architecture: Architecture, recipe: Recipe, *, shard_bytes: int) -> Plan:
    """Decide on every tensor.

    Raises InputError where there is nothing to decide on, a selector matches nothing or one fused matrix would mix
    formats.
    """
    if not source.tensors:
        raise InputError(f"`{source.storage.label}` holds no tensors", fix="name a folder that holds weights")
    layers = architecture.layers(source.config)
    roles = {name: architecture.classify(name) for name in source.tensors}
    _check_selectors(recipe, roles, layers)
    decisions = tuple(_decide(tensor, roles[name], recipe, layers) for name, tensor in source.tensors.items())
    _check_used(recipe, decisions, layers)
    _check_fused(decisions, (*architecture.fused, _STACKED))
    _check_names(decisions)
    shards = lay_out_shards([decision.stored for decision in decisions], shard_bytes)
    return Plan(source, source.fingerprint(), architecture, recipe, layers, decisions, shards)


def _decide(tensor: TensorInfo, role: TensorRole, recipe: Recipe, layers: int) -> Decision:
    stored_as, why = _choose(tensor, role, recipe, layers)
    if isinstance(stored_as, Keep):
        return _kept(tensor, role, recipe, why)
    stored = stored_as.stored(tensor.name, tensor.shape)
    if sum(part.nbytes for part in stored) >= tensor.nbytes:
        return _kept(tensor, role, recipe, _TOO_SMALL)
    return Decision(tensor, role, stored_as, stored, why)


def _choose(tensor: TensorInfo, role: TensorRole, recipe: Recipe, layers: int) -> tuple[Tq | Keep, str]:
    """The first override that fits, else the default. Protection yields to overrides that name a role or a tensor."""
    override = _first_fit(recipe, tensor.name, role, layers)
    named = override is not None and bool(override.roles or override.tensors)
    if not named and set(role.roles) & set(recipe.protect):
        return Keep(), "protected"
    if reason := _no_matrix(tensor, role, named=bool(override and override.tensors)):
        return Keep(), reason
    return (override.stored_as, override.why) if override else (recipe.stored_as, "")


def _no_matrix(tensor: TensorInfo, role: TensorRole, *, named: bool) -> str:
    """Why a tensor cannot be packed, or nothing. `named`: an override selects it by its own name."""
    if role.roles == ("norm",):
        return "not a weight matrix"
    if role.roles == ("other",) and not named:
        return "no known role"
    experts = len(tensor.shape) == 3 and bool(_EXPERT_ROLES & set(role.roles))
    if len(tensor.shape) != 2 and not experts:
        return "not a weight matrix"
    if tensor.parameters == 0:
        return "empty"
    if tensor.dtype not in _ENCODABLE:
        return f"{tensor.dtype.lower()} is not encoded"
    return ""


def _kept(tensor: TensorInfo, role: TensorRole, recipe: Recipe, why: str) -> Decision:
    halved = recipe.keep_dtype == "float16" and tensor.dtype in _ENCODABLE
    dtype = "F16" if halved else tensor.dtype
    return Decision(tensor, role, None, (Stored(tensor.name, dtype, tensor.shape),), why)


def _first_fit(recipe: Recipe, name: str, role: TensorRole, layers: int) -> Override | None:
    return next((one for one in recipe.override if _fits(one, name, role, layers)), None)


def _fits(override: Override, name: str, role: TensorRole, layers: int) -> bool:
    by_role = not override.roles or bool(set(override.roles) & set(role.roles))
    by_name = not override.tensors or any(matches(name, pattern) for pattern in override.tensors)
    return by_role and by_name and (override.layers is None or override.layers.holds(role.layer, layers))


def matches(name: str, pattern: str) -> bool:
    """Whether a tensor's name, with or without `.weight`, fits a glob or a `re:` pattern."""
    names = (name, name.removesuffix(".weight"))
    if not pattern.startswith("re:"):
        return any(fnmatchcase(one, pattern) for one in names)
    return any(re.fullmatch(pattern[3:], one) for one in names)


def _check_selectors(recipe: Recipe, roles: Mapping[str, TensorRole], layers: int) -> None:
    """A selector that matches nothing is a mistake in the recipe, or the wrong recipe for the model."""
    for override in recipe.override:
        for pattern in override.tensors:
            _check_pattern(pattern, roles)
        if not any(_fits(override, name, role, layers) for name, role in roles.items()):
            raise InputError(f"an override matches no tensor of this model: {_selector(override)}", why=override.why)


def _check_used(recipe: Recipe, decisions: Sequence[Decision], layers: int) -> None:
    """An override that fits tensors and changes none of them is as dead as one that fits nothing."""
    used = set()
    for decision in decisions:
        override = _first_fit(recipe, decision.tensor.name, decision.role, layers)
        if override and (decision.tq or decision.why == _TOO_SMALL or isinstance(override.stored_as, Keep)):
            used.add(recipe.override.index(override))
    for number, override in enumerate(recipe.override):
        if number not in used:
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


def _check_pattern(pattern: str, names: Mapping[str, TensorRole]) -> None:
    try:
        found = any(matches(name, pattern) for name in names)
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
            if len(decision.tensor.shape) >= 2 and set(decision.role.roles) & set(group):
                blocks.setdefault(decision.role.block, {}).setdefault(_fusible(decision), decision)
        for block, labels in blocks.items():
            if len(labels) > 1:
                raise _mixed(block, group, labels.values())


def _fusible(decision: Decision) -> str:
    """Equal for tensors that can lie in one matrix. Kept ones can, whatever float they are in."""
    return decision.tq.label if decision.tq else "kept"


def _mixed(block: str, group: tuple[Role, ...], decisions: Iterable[Decision]) -> InputError:
    what = f"`{block}` would mix formats inside one fused matrix"
    why = ", ".join(f"`{one.tensor.name}` {one.label}" + (f" ({one.why})" if one.why else "") for one in decisions)
    return InputError(what, why=why, fix=f"give every {', '.join(group)} of a layer the same format in the recipe")
