"""A choice of widths as a recipe: overrides by name, a pattern for each kind of tensor, before those that are there.

So what was chosen is recorded in the folder as any recipe is, and can be read, changed and used again.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from tqcli.budget.candidates import Candidate, Group
from tqcli.formats.base import Format
from tqcli.recipe import Override, Recipe
from tqcli.weights import Weight

_LAYER = "\0"
_EXPERT = "[0-9]+"


def with_choice(recipe: Recipe, groups: Sequence[Group], chosen: Sequence[Candidate], summary: str) -> Recipe:
    """The recipe that gives each group its candidate. Groups that have it anyway get no override of their own."""
    weights: dict[Format, list[Weight]] = {}
    for group, candidate in zip(groups, chosen, strict=True):
        if candidate.format != group.present:
            weights.setdefault(candidate.format, []).extend(one.weight for one in group.decisions)
    overrides = [
        Override.model_validate({"stored_as": stored_as, "tensors": patterns(weights[stored_as])})
        for stored_as in sorted(weights, key=lambda one: one.label)
    ]
    # Nothing may be left for an override that was there, and that is no mistake then.
    rest = [one.model_copy(update={"optional": True}) for one in recipe.override]
    return recipe.model_copy(update={"summary": summary, "override": (*overrides, *rest)})


def patterns(weights: Iterable[Weight]) -> tuple[str, ...]:
    """One pattern for all layers and experts of a tensor, such as `re:layers\\.(0|3)\\.mlp\\.up_proj\\.weight`."""
    layers: dict[str, dict[int, None]] = {}
    for weight in weights:
        layers.setdefault(_template(weight), {})[weight.role.layer if weight.role.layer is not None else -1] = None
    return tuple(_pattern(template, found) for template, found in layers.items())


def _pattern(template: str, layers: Mapping[int, None]) -> str:
    numbers = "|".join(str(layer) for layer in sorted(layers))
    return "re:" + template.replace(_LAYER, f"({numbers})" if "|" in numbers else numbers)


def _template(weight: Weight) -> str:
    """The name as a regular expression, with a mark for its layer, and any number for its expert."""
    parts = [re.escape(part) for part in weight.selector.split(".")]
    role = weight.role
    if role.layer is not None and str(role.layer) in parts:
        parts[parts.index(str(role.layer))] = _LAYER
    # Of stacked experts that are written one by one, the original's name has no number.
    if role.expert is not None and str(role.expert) in parts:
        parts[len(parts) - 1 - parts[::-1].index(str(role.expert))] = _EXPERT
    return r"\.".join(parts)
