"""Which override of a recipe a weight falls under: by its roles, its names, its layer. The first that fits wins.

Left out: what is then done (`decision`), and whether a recipe makes sense for a model (`plan`).
"""

import re
from fnmatch import fnmatchcase

from tqcli.recipe import Override, Recipe
from tqcli.weights import Weight


def first_fit(recipe: Recipe, weight: Weight, layers: int) -> Override | None:
    """None: the recipe's default. layers: of the model."""
    return next((one for one in recipe.override if fits(one, weight, layers)), None)


def fits(override: Override, weight: Weight, layers: int) -> bool:
    """Whether every selector that the override has fits the weight."""
    role = weight.role
    by_role = not override.roles or bool(set(override.roles) & set(role.roles))
    by_name = not override.tensors or any(named(weight, pattern) for pattern in override.tensors)
    return by_role and by_name and (override.layers is None or override.layers.holds(role.layer, layers))


def named(weight: Weight, pattern: str) -> bool:
    """Whether a pattern fits the weight's name in the source, or the one that it gets."""
    return matches(weight.selector, pattern) or (weight.name != weight.selector and matches(weight.name, pattern))


def matches(name: str, pattern: str) -> bool:
    """Whether a tensor's name, with or without `.weight`, fits a glob or a `re:` pattern."""
    names = (name, name.removesuffix(".weight"))
    if not pattern.startswith("re:"):
        return any(fnmatchcase(one, pattern) for one in names)
    return any(re.fullmatch(pattern[3:], one) for one in names)
