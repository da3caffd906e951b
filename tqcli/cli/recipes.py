"""`tq convert --recipes`: the built-in recipes side by side."""

from typing import TYPE_CHECKING

from tqcli.cli.out import Out, size

if TYPE_CHECKING:
    from tqcli.recipe_table import RecipeRow

# Errors below this get a fifth digit.
_SMALL = 0.002


def print_recipes(out: Out) -> None:
    """What each does, and what it gives: two tables."""
    from tqcli.recipe_table import recipe_rows
    from tqcli.reference_model import NAME

    rows = recipe_rows()
    out.table(("recipe", "what it does"), [(row.name, row.recipe.summary) for row in rows])
    out.line()
    numbers = [
        (row.name, f"{row.bits_per_weight:.2f}", size(row.file_bytes), _error(row.gaussian_error),
         _error(row.trained_error), row.loaders)
        for row in rows
    ]  # fmt: skip
    out.table(("recipe", "bits/w", NAME, "error", "trained", "loads in"), numbers, right=(1, 2, 3, 4))
    out.line()
    out.line("error: relative squared error of compressed weights, Gaussian and trained")
    out.result({row.name: _recipe_data(row) for row in rows}, *(row.name for row in rows))


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}" if value < _SMALL else f"{value:.4f}"


def _recipe_data(row: "RecipeRow") -> dict[str, object]:
    return {
        "recipe": row.recipe.to_flat(),
        "bits_per_weight": round(row.bits_per_weight, 4),
        "gemma_4_26b_bytes": row.file_bytes,
        "gaussian_error": row.gaussian_error,
        "trained_error": row.trained_error,
        "loads_in": row.loaders,
    }
