"""What every layout of a folder answers: how weights are cut and named, which file they lie in, what config.json says.

A format stores one weight; a layout is the folder that readers of that format expect. Several formats may share one.
Left out: what tq writes into every folder beside it (`documents`).
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tqcli.architectures.base import Architecture
from tqcli.arrangement import Arrangement
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.writer import ShardLayout
from tqcli.decision import Decision
from tqcli.errors import InputError
from tqcli.plan import Plan
from tqcli.readers.find import PLAIN, Contents
from tqcli.recipe import Recipe
from tqcli.weights import Weight

# Format in recipes -> layout of the folder.
_LAYOUTS = {
    "tq": "native",
    "trellis": "native",
    "uniform": "native",
    "fp8": "compressed_tensors",
    "int4": "compressed_tensors",
    "mxfp4": "compressed_tensors",
    "nvfp4": "compressed_tensors",
    "mlx": "mlx",
    "hlwq": "hlwq",
}


class Layout(Protocol):
    """One way to lay out a folder. Stateless."""

    @property
    def name(self) -> str:
        """The module's name; recorded in the folder."""

    def arrange(self, originals: Sequence[Weight], source: Checkpoint) -> Arrangement:
        """The weights of a folder that is made from these. Raises InputError where the model does not fit."""

    def restore(self, contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
        """The original weights, under their original names, of a folder that has this layout.

        Raises InputError where they cannot be told.
        """

    def lay_out(self, decisions: Sequence[Decision], source: Checkpoint, shard_bytes: int) -> tuple[ShardLayout, ...]:
        """Which file each stored tensor goes to."""

    def documents(self, plan: Plan) -> dict[str, bytes]:
        """Index, config.json and whatever else readers need: name -> content, config.json last."""

    def record(self, plan: Plan) -> Mapping[str, Any]:
        """What stands first in tq_config.json."""


def layout_of(recipe: Recipe) -> Layout:
    """The layout that a recipe's formats need. Raises InputError where they need several."""
    found = {format_name: _LAYOUTS[format_name] for format_name in recipe.formats}
    names = list(dict.fromkeys(found.values()))
    if len(names) > 1:
        first, second = (next(key for key in found if found[key] == name) for name in names[:2])
        what = f"`{first}` and `{second}` cannot lie in one folder"
        raise InputError(what, why="no engine reads both", fix="one of them in a recipe, and `keep`")
    return find(names[0] if names else PLAIN)


def find(name: str) -> Layout:
    """The layout called `name`, one of this folder's files."""
    layout: Layout = importlib.import_module(f"tqcli.layouts.{name}").LAYOUT
    return layout
