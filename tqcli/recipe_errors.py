"""What a person reads when a recipe is wrong: the file, the line, the key and the nearest legal word."""

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tqcli.errors import InputError

_INTERNAL = {"stored_as", "tq", "keep"}


def unknown_recipe(name: str, known: Sequence[str]) -> InputError:
    """There is no such built-in recipe and no such file."""
    near = difflib.get_close_matches(name, known, 1)
    fix = f"did you mean `{near[0]}`?" if near else "`tq convert --recipes` lists the built-in ones"
    return InputError(f"no recipe `{name}`", why="it is neither a built-in name nor a file", fix=fix)


def explain(error: ValidationError, path: Path, text: str, legal: Collection[str]) -> InputError:
    """Turn the first thing that pydantic found into one sentence with a line number."""
    # A misspelt key is reported twice, as unknown and as missing; the first is the one to show.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    place = [part for part in first["loc"] if part not in _INTERNAL]
    key = next((part for part in reversed(place) if isinstance(part, str)), "format")
    if first["type"] == "missing":
        return InputError(f"{path}: `{key}` is missing", why="the recipe's format needs it")
    where = f"{path}:{_line_of(text, place, key)}: `{key}`"
    if first["type"] == "extra_forbidden":
        return InputError(f"{where} is not a recipe key", fix=_nearest(key, legal))
    if first["type"] == "union_tag_not_found":
        return InputError(f"{path}: `format` is missing", fix='such as `format = "tq"`')
    return _wrong_value(where, first)


def _wrong_value(where: str, first: Any) -> InputError:
    context = first.get("ctx", {})
    allowed = str(context.get("expected", "") or context.get("expected_tags", ""))
    value = context.get("tag", first["input"])
    words = re.findall(r"'([^']+)'", allowed)
    why = f"it must be {allowed}" if allowed else first["msg"]
    return InputError(f"{where} cannot be `{_short(value)}`", why=why, fix=_nearest(str(value), words))


def _nearest(word: str, legal: Collection[str]) -> str:
    near = difflib.get_close_matches(word, sorted(legal), 1)
    return f"did you mean `{near[0]}`?" if near else ""


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 40 else text[:37] + "..."


def _line_of(text: str, place: Sequence[int | str], key: str) -> int:
    """The line that a key sits on: enough for the flat, two-level files that recipes are."""
    wanted = place[1] if len(place) > 1 and place[0] == "override" and isinstance(place[1], int) else None
    table = -1
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("[["):
            table += 1
        here = table == wanted if wanted is not None else table == -1
        if here and re.match(rf"{re.escape(key)}\s*=", stripped):
            return number
    return 1
