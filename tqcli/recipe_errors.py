"""What a person reads when a recipe is wrong: the file, the line, the key and the nearest legal word."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tqcli.errors import InputError

# Steps of pydantic's path that are not in the file: the folded format and its kinds.
_FOLDED = "stored_as"
_WORDS = {
    "tuple_type": "a list, in brackets",
    "string_type": "text in quotes",
    "string_unicode": "text that UTF-8 can hold",
    "int_type": "a whole number",
    "model_type": "a table, such as `{ first = 2, last = 2 }`",
    "model_attributes_type": "a table",
}
_MAX_SHOWN = 40
_MAX_WORDS = 6

Place = tuple[int | str, ...]


@dataclass(frozen=True)
class Origin:
    """Where a recipe's keys come from: lines of a file, or `--set` on the command line."""

    path: Path
    text: str
    changed: frozenset[str] = frozenset()

    def of(self, place: Place) -> str:
        """`file:line`, or `--set`, for a key such as ("override", 0, "layers", "first")."""
        if place and place[0] in self.changed:
            return "--set"
        return f"{self.path}:{self._line(place)}"

    def _line(self, place: Place) -> int:
        """Enough for the flat, two-level files that recipes are: the key's line, or that of what it is inside."""
        wanted = place[1] if len(place) > 1 and isinstance(place[1], int) else None
        lines = list(_numbered(self.text, wanted if place[:1] == ("override",) else None))
        for key in (part for part in reversed(place) if isinstance(part, str)):
            for number, line in lines:
                if re.match(rf"(?:\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*[=\].]", line):
                    return number
        return lines[0][0] if lines else 1


def unknown_recipe(name: str, known: Sequence[str]) -> InputError:
    """There is no such built-in recipe and no such file."""
    near = difflib.get_close_matches(name, known, 1)
    fix = f"did you mean `{near[0]}`?" if near else "`tq convert --recipes` lists the built-in ones"
    return InputError(f"no recipe `{name}`", why="it is neither a built-in name nor a file", fix=fix)


def explain(error: ValidationError, origin: Origin, legal: Mapping[str, Collection[str]]) -> InputError:
    """Turn the first thing that pydantic found into one sentence. legal: scope -> the keys that it may have."""
    # A misspelt key is reported twice, as unknown and as missing; the first is the one to show.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    place = _written(first["loc"])
    key = next((part for part in reversed(place) if isinstance(part, str)), "")
    kind = first["type"]
    if kind == "union_tag_not_found":
        return InputError(f"{origin.of(place)}: `format` is missing", fix='such as `format = "tq"`')
    if kind == "missing":
        return InputError(f"{origin.of(place[:-1])}: `{key}` is missing", why="the recipe's format needs it")
    if kind == "value_error":
        why = f"an override works only where {first['ctx']['error']}"
        return InputError(f"{origin.of(place)}: the override selects nothing", why=why)
    if kind == "extra_forbidden":
        return _unknown_key(f"{origin.of(place)}: `{key}`", key, place, legal)
    return _wrong_value(origin, place, key or "format", first)


def _written(location: Place) -> Place:
    """A place in the file: without the folded format and, after it, the name of its kind."""
    if _FOLDED not in location:
        return location
    at = location.index(_FOLDED)
    return (*location[:at], *location[at + 2 :])


def _unknown_key(where: str, key: str, place: Place, legal: Mapping[str, Collection[str]]) -> InputError:
    scope = next((part for part in reversed(place[:-1]) if isinstance(part, str)), "")
    if key in legal.get(scope, ()):
        return InputError(f"{where} does not go with this format", fix="`tq convert --recipes` shows recipes that work")
    if key in legal[""]:
        return InputError(f"{where} cannot stand in `{scope}`", fix="it belongs at the top, before any override")
    return InputError(f"{where} is not a recipe key", fix=_nearest(key, legal.get(scope, ())))


def _wrong_value(origin: Origin, place: Place, key: str, first: Any) -> InputError:
    context = first.get("ctx", {})
    allowed = str(context.get("expected", "") or context.get("expected_tags", ""))
    key = "format" if "tag" in context else key
    value = context.get("tag", first["input"])
    words = re.findall(r"'([^']+)'", allowed)
    why = f"it must be {_WORDS.get(first['type'], allowed.replace(chr(39), '`')) or _bounds(first)}"
    where = origin.of((*place, "format") if "tag" in context else place)
    near = _nearest(str(value), words)
    # The whole list helps only where it is short, or where nothing is near.
    why = "" if near and len(words) > _MAX_WORDS else why
    return InputError(f"{where}: `{key}` cannot be `{_short(value)}`", why=why, fix=near)


def _bounds(first: Any) -> str:
    """Pydantic's `Input should be less than 5` without its first words."""
    return str(first["msg"]).removeprefix("Input should be ")


def _nearest(word: str, legal: Collection[str]) -> str:
    near = difflib.get_close_matches(word, sorted(legal), 1)
    return f"did you mean `{near[0]}`?" if near else ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _numbered(text: str, wanted: int | None) -> list[tuple[int, str]]:
    """The lines of the n-th override, its heading among them, or those before the first one, with their numbers."""
    table = -1
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        table += stripped.startswith("[[")
        if table == (-1 if wanted is None else wanted):
            found.append((number, stripped))
    return found
