"""Recipes: which tensor gets which format. A recipe is data from a TOML file; nothing here touches a tensor.

Flat keys are the default format; `[[override]]` tables change it for some tensors and the first match wins. Roles
named in `protect` keep the source's bytes unless an override names them.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tqcli import recipe_errors
from tqcli.architectures.base import Role
from tqcli.errors import InputError
from tqcli.formats.fp8 import Fp8
from tqcli.formats.hlwq import Hlwq
from tqcli.formats.int4 import Int4
from tqcli.formats.mlx import Mlx
from tqcli.formats.mxfp4 import MxFp4
from tqcli.formats.nvfp4 import NvFp4
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform

_MAXIMUM_BYTES = 1 << 20
_FOLDED = "stored_as"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Keep(_Table):
    """The source's own bytes."""

    format: Literal["keep"] = "keep"

    @property
    def label(self) -> str:
        """As printed in tables."""
        return "kept"


StoredAs = Annotated[
    Tq | Trellis | Uniform | Fp8 | Int4 | MxFp4 | NvFp4 | Mlx | Hlwq | Keep, Field(discriminator="format")
]
_FORMATS: tuple[type[BaseModel], ...] = get_args(get_args(StoredAs)[0])
# `format`, and the options of every format: the keys that stand flat in a recipe.
_FORMAT_KEYS = tuple(dict.fromkeys(key for one in _FORMATS for key in one.model_fields))


class Layers(_Table):
    """The first and the last so many layers."""

    first: int = Field(default=0, ge=0, strict=True)
    last: int = Field(default=0, ge=0, strict=True)

    def holds(self, layer: int | None, count: int) -> bool:
        """Whether that layer, of `count`, is one of them."""
        return layer is not None and (layer < self.first or layer >= count - self.last)


class Override(_Table):
    """Another format for the tensors that fit every selector given. optional: there may be none left for it."""

    stored_as: StoredAs
    why: str = ""
    optional: bool = Field(default=False, strict=True)
    roles: tuple[Role, ...] = ()
    tensors: tuple[str, ...] = ()
    layers: Layers | None = None

    @model_validator(mode="after")
    def _has_selector(self) -> Self:
        if not (self.roles or self.tensors or self.layers):
            raise ValueError("it says `roles`, `tensors` or `layers`")
        return self


class Recipe(_Table):
    """A recipe as resolved: file, defaults and `--set` together."""

    summary: str = ""
    stored_as: StoredAs
    protect: tuple[Role, ...] = ("embed", "head", "router", "vision", "audio")
    keep_dtype: Literal["source", "float16"] = "source"
    override: tuple[Override, ...] = ()

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that compress something, in the order of the recipe."""
        chosen = (self.stored_as, *(one.stored_as for one in self.override))
        return tuple(dict.fromkeys(one.format for one in chosen if not isinstance(one, Keep)))

    def to_flat(self) -> dict[str, Any]:
        """The recipe with the keys of its file, for storing in the output."""
        return _unfold(self.model_dump(mode="json", exclude_none=True))


def builtin_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that ship with the package."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.toml"), key=lambda path: path.stem)}


def recipes_folder() -> Path:
    """Where they are: in the package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def load_recipe(name_or_file: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a built-in recipe by name, or a file, and apply `key=value` changes.

    Raises InputError naming file, line and nearest key.
    """
    path = _locate(name_or_file)
    text = _read(path)
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"`{path}` is not valid TOML", why=str(error)) from error
    set_keys = []
    for change in changes:
        key, value = parse_change(change)
        data[key] = value
        set_keys.append(key)
    return _validate(data, recipe_errors.Origin(path, text, frozenset(set_keys)))


def parse_change(change: str) -> tuple[str, Any]:
    """`bits=4` -> ("bits", 4); what is no TOML value is taken as a string."""
    key, equals, raw = change.partition("=")
    if not change.isascii() and change != change.encode(errors="replace").decode():
        raise InputError("`--set` holds bytes that are not text", why="a recipe is stored as UTF-8")
    if not equals or not key.strip():
        raise InputError(f"`--set {change}` is not of the form key=value", fix="such as `--set bits=4`")
    try:
        table = tomllib.loads(f"value = {raw}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return key.strip(), raw.strip()
    # More than one key: the text held a line break, so it was no single value.
    return key.strip(), table["value"] if len(table) == 1 else raw.strip()


def _locate(name_or_file: str) -> Path:
    known = builtin_recipes()
    if name_or_file in known:
        return known[name_or_file]
    path = Path(name_or_file)
    if path.is_file():
        return path
    raise recipe_errors.unknown_recipe(name_or_file, list(known))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAXIMUM_BYTES:
            raise InputError(f"`{path}` is too large for a recipe", why=f"over {_MAXIMUM_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"`{path}` is not UTF-8 text", why=str(error)) from error
    except OSError as error:
        raise InputError(f"`{path}` cannot be read", why=str(error)) from error


def _validate(data: dict[str, Any], origin: recipe_errors.Origin) -> Recipe:
    try:
        return Recipe.model_validate(_fold(data))
    except ValidationError as error:
        raise recipe_errors.explain(error, origin, _legal_keys()) from error


def _legal_keys() -> dict[str, set[str]]:
    """Scope -> the keys that may stand in it."""
    return {
        "": {*_FORMAT_KEYS, *Recipe.model_fields} - {_FOLDED},
        "override": {*_FORMAT_KEYS, *Override.model_fields} - {_FOLDED},
        "layers": set(Layers.model_fields),
    }


def _fold(data: Mapping[str, Any]) -> dict[str, Any]:
    """Gather the flat format keys of each scope in one table; an override inherits the defaults."""
    default, folded = _split(data)
    folded[_FOLDED] = default
    overrides = data.get("override")
    if isinstance(overrides, list):
        folded["override"] = [_fold_override(table, default) for table in overrides]
    return folded


def _fold_override(table: Any, default: Mapping[str, Any]) -> Any:
    if not isinstance(table, dict):
        return table
    own, rest = _split(table)
    inherits = own.get("format", default.get("format")) == default.get("format")
    return rest | {_FOLDED: {**default, **own} if inherits else own}


def _split(table: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Format keys, and the rest."""
    format_keys = {key: value for key, value in table.items() if key in _FORMAT_KEYS}
    rest = {key: value for key, value in table.items() if key not in _FORMAT_KEYS}
    if _FOLDED in rest:
        raise InputError(
            f"`{_FOLDED}` is not a recipe key", fix=f"{', '.join(_FORMAT_KEYS)} stand beside the other keys"
        )
    return format_keys, rest


def _unfold(data: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = data.pop(_FOLDED) | data
    if "override" in flat:
        flat["override"] = [_unfold(dict(table)) for table in flat["override"]]
    return flat
