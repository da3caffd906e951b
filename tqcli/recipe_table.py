"""The built-in recipes side by side: bits, size on Gemma 4 26B, errors, and who loads the result.

Sizes are planned, and errors on Gaussian weights measured, when the table is asked for. Errors on trained weights are
read from a file that scripts/measure_recipes writes, with what was measured. Left out: how well models then answer.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tqcli.architectures.base import find
from tqcli.checkpoint.reader import Checkpoint
from tqcli.codec.floats import narrow, widen
from tqcli.formats.base import AbsmaxFormat, Format
from tqcli.layouts.base import layout_of
from tqcli.layouts.originals import original_weights
from tqcli.plan import Decision, Plan, make_plan
from tqcli.recipe import Recipe, builtin_recipes, load_recipe, recipes_folder
from tqcli.reference_model import reference_model

_TRAINED = "trained-errors.json"
_SHARD_BYTES = 5_000_000_000
# Large enough for three digits, and a multiple of every group.
_ROWS, _COLUMNS = 128, 1024
_LOADERS: Mapping[str, str] = {
    "compressed_tensors": "vLLM, tqcli",
    "hlwq": "tqcli",
    "mlx": "mlx_lm, tqcli",
    "native": "tqcli, TurboQuant+",
    "plain": "anything",
}


@dataclass(frozen=True)
class RecipeRow:
    """One recipe. bits_per_weight, file_bytes: of the whole reference model. Errors: relative squared error of the
    weights that it compresses, None where it compresses none or nothing was measured.
    """

    name: str
    recipe: Recipe
    bits_per_weight: float
    file_bytes: int
    gaussian_error: float | None
    trained_error: float | None
    loaders: str


def recipe_rows() -> list[RecipeRow]:
    """Every built-in recipe, the smallest first."""
    model = reference_model()
    trained = _trained_errors()
    errors: dict[Format, float] = {}
    rows = [_row(name, load_recipe(name), model, trained.get(name), errors) for name in builtin_recipes()]
    return sorted(rows, key=lambda row: (row.file_bytes, row.name))


def _row(name: str, recipe: Recipe, model: Checkpoint, trained: float | None, errors: dict[Format, float]) -> RecipeRow:
    plan = _plan(recipe, model)
    return RecipeRow(
        name=name,
        recipe=recipe,
        bits_per_weight=plan.weight_bytes * 8 / plan.parameters,
        file_bytes=plan.file_bytes,
        gaussian_error=_mean_error(plan.packed, errors),
        trained_error=trained,
        loaders=_LOADERS[plan.layout],
    )


def _plan(recipe: Recipe, model: Checkpoint) -> Plan:
    architecture = find(model.config)
    layout = layout_of(recipe)
    arrangement = layout.arrange(original_weights(model, architecture), model)
    return make_plan(model, architecture, recipe, arrangement, lambda made: layout.lay_out(made, model, _SHARD_BYTES))


def _mean_error(packed: Iterable[Decision], errors: dict[Format, float]) -> float | None:
    """Over all weights that are compressed, each format by its share."""
    lost = total = 0.0
    for decision in packed:
        stored_as = decision.format
        if stored_as is None:
            continue
        if stored_as not in errors:
            errors[stored_as] = gaussian_error(stored_as)
        lost += errors[stored_as] * decision.weight.parameters
        total += decision.weight.parameters
    return lost / total if total else None


def gaussian_error(stored_as: Format) -> float:
    """Squared error of a format on BF16 weights drawn from one normal distribution, over their squared length."""
    drawn = np.random.default_rng(0).standard_normal((_ROWS, _COLUMNS), dtype=np.float32) * np.float32(0.02)
    weight = narrow(drawn, "BF16")
    truth = widen(weight, "BF16")
    if isinstance(stored_as, AbsmaxFormat):
        stored_as = stored_as.with_absmax(float(np.abs(truth).max()))
    decoded = stored_as.decode(stored_as.encode(weight, "BF16"), _COLUMNS)
    return float(np.square(decoded - truth, dtype=np.float64).sum() / np.square(truth, dtype=np.float64).sum())


def _trained_errors() -> dict[str, float]:
    """Recipe -> error, as measured last; empty where the file is not there."""
    path = recipes_folder() / _TRAINED
    if not path.is_file():
        return {}
    measured: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: float(value) for name, value in measured["errors"].items()}
