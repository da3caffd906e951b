"""The built-in recipes side by side: bits, size on Gemma 4 26B, errors, and who loads the result.

Sizes are planned, and errors on Gaussian weights measured, when the table is asked for. Errors on trained weights are
read from a file that scripts/measure_trained_errors writes, format by format. Left out: how well models then answer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from tq_kernels.floats import narrow, widen

from tqcli.architectures.base import find
from tqcli.checkpoint.reader import Checkpoint
from tqcli.formats.base import AbsmaxFormat, Format
from tqcli.formats.native import version_of
from tqcli.layouts.base import layout_of
from tqcli.layouts.originals import original_weights
from tqcli.plan import Plan, make_plan
from tqcli.recipe import Recipe, builtin_recipes, load_recipe, recipes_folder
from tqcli.reference_model import reference_model

_TRAINED = "trained-errors.json"
_BLOCK = 128
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
    gaussian: dict[Format, float] = {}
    rows = [_row(name, load_recipe(name), model, trained, gaussian) for name in builtin_recipes()]
    return sorted(rows, key=lambda row: (row.file_bytes, row.name))


def _row(
    name: str, recipe: Recipe, model: Checkpoint, trained: Mapping[str, float], gaussian: dict[Format, float]
) -> RecipeRow:
    plan = _plan(recipe, model)
    parameters: dict[Format, int] = {}
    for decision in plan.packed:
        if decision.format is not None:
            parameters[decision.format] = parameters.get(decision.format, 0) + decision.weight.parameters
    for stored_as in parameters.keys() - gaussian.keys():
        gaussian[stored_as] = gaussian_error(stored_as)
    return RecipeRow(
        name=name,
        recipe=recipe,
        bits_per_weight=plan.weight_bytes * 8 / plan.parameters,
        file_bytes=plan.file_bytes,
        gaussian_error=_mean(parameters, gaussian),
        trained_error=_mean(parameters, {one: trained.get(key_of(one)) for one in parameters}),
        loaders="tqcli" if _is_ours_alone(plan) else _LOADERS[plan.layout],
    )


def _plan(recipe: Recipe, model: Checkpoint) -> Plan:
    architecture = find(model.config)
    layout = layout_of(recipe)
    arrangement = layout.arrange(original_weights(model, architecture), model)
    return make_plan(model, architecture, recipe, arrangement, lambda made: layout.lay_out(made, model, _SHARD_BYTES))


def _is_ours_alone(plan: Plan) -> bool:
    """The other readers of the native layout know one format; vLLM takes FP8 only in blocks that are whole."""
    formats = {one.format.format for one in plan.packed if one.format}
    shapes = (one.weight.shape for one in plan.packed if one.format and one.format.block_rows > 1)
    return version_of(formats) > 1 or any(size % _BLOCK for shape in shapes for size in shape)


def _mean(parameters: Mapping[Format, int], errors: Mapping[Format, float | None]) -> float | None:
    """Over all weights that are compressed, each format by its share; None where there are none, or one is unknown."""
    known = {one: errors.get(one) for one in parameters}
    if not known or any(error is None for error in known.values()):
        return None
    return sum((known[one] or 0.0) * count for one, count in parameters.items()) / sum(parameters.values())


def gaussian_error(stored_as: Format) -> float:
    """Squared error of a format on BF16 weights drawn from one normal distribution, over their squared length."""
    drawn = np.random.default_rng(0).standard_normal((_ROWS, _COLUMNS), dtype=np.float32) * np.float32(0.02)
    lost, total = squared_error(stored_as, narrow(drawn, "BF16"))
    return lost / total


def squared_error(stored_as: Format, weight: NDArray[np.uint16]) -> tuple[float, float]:
    """Squared error of a BF16 matrix once decoded again, and its squared length."""
    truth = widen(weight, "BF16")
    if isinstance(stored_as, AbsmaxFormat):
        stored_as = stored_as.with_absmax(float(np.abs(truth).max()))
    decoded = stored_as.decode(stored_as.encode(weight, "BF16"), weight.shape[1])
    return float(np.square(decoded - truth, dtype=np.float64).sum()), float(np.square(truth, dtype=np.float64).sum())


def key_of(stored_as: Format) -> str:
    """A format with all its options, as the file of trained errors names it."""
    if not isinstance(stored_as, BaseModel):
        raise TypeError(f"{stored_as.label} is no option of a recipe")
    options = stored_as.model_dump(mode="json")
    return " ".join(f"{key}={value}" for key, value in options.items())


def _trained_errors() -> dict[str, float]:
    """Format -> error, as scripts/measure_trained_errors measured it last; empty where the file is not there."""
    path = recipes_folder() / _TRAINED
    if not path.is_file():
        return {}
    measured: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: float(value) for name, value in measured["errors"].items()}
