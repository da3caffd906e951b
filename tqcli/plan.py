"""The plan: one decision a weight, made from names and shapes alone. No weight is read and nothing is written.

What the plan says of sizes is what the writer writes: the sum of `Format.stored` and of the headers, to the byte.
Left out: which weights the output has (`arrangement`), and the files around them (`layouts`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tqcli.agreement import STACKED, check_fused, levelled, shared
from tqcli.architectures.base import Architecture
from tqcli.arrangement import Arrangement, LeftOut
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.writer import ShardLayout
from tqcli.decision import Decision, decide
from tqcli.errors import InputError
from tqcli.recipe import Keep, Override, Recipe
from tqcli.selection import first_fit, fits, named
from tqcli.weights import Weight


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
    groups = (*architecture.fused, STACKED, *arrangement.alike)
    decisions = levelled(tuple(decide(weight, recipe, layers) for weight in weights), groups, recipe)
    _check_used(recipe, decisions, layers)
    check_fused(decisions, groups)
    _check_names(decisions)
    decisions = shared(decisions, architecture.fused)
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


def _check_selectors(recipe: Recipe, weights: Sequence[Weight], layers: int) -> None:
    """A selector that matches nothing is a mistake in the recipe, or the wrong recipe for the model."""
    for override in recipe.override:
        for pattern in override.tensors:
            _check_pattern(pattern, weights)
        if not override.optional and not any(fits(override, weight, layers) for weight in weights):
            raise InputError(f"an override matches no tensor of this model: {_selector(override)}", why=override.why)


def _check_used(recipe: Recipe, decisions: Sequence[Decision], layers: int) -> None:
    """An override that fits tensors and changes none of them is as dead as one that fits nothing."""
    used = set()
    for decision in decisions:
        override = first_fit(recipe, decision.weight, layers)
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
        found = any(named(weight, pattern) for weight in weights)
    except re.error as error:
        raise InputError(f"`{pattern}` is not a regular expression", why=str(error)) from error
    if not found:
        fix = "`tq inspect MODEL --names` lists the names"
        raise InputError(f"pattern `{pattern}` matches no tensor of this model", fix=fix)
