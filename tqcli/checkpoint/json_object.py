"""Parse a JSON object that somebody else wrote: UTF-8, one object, no key twice.

Size is bounded by the caller, who knows what it is reading. Nothing here knows what the object means.
"""

import json
from collections.abc import Callable
from typing import Any

from tqcli.errors import InputError


class _DuplicateKeyError(ValueError):
    """The same key twice in one object: parsers disagree about which value counts."""


def parse_object(raw: bytes, label: str, parse_integer: Callable[[str], int] = int) -> dict[str, Any]:
    """The object in `raw`. `label` names the file in messages; `parse_integer` may refuse with ValueError.

    Raises InputError when `raw` is not UTF-8, not JSON, not an object, repeats a key or nests too deeply.
    """
    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=parse_integer)
    except UnicodeDecodeError as error:
        raise InputError(f"`{label}` is not UTF-8 text", why=f"byte {error.start} is not valid") from error
    except RecursionError as error:
        raise InputError(f"`{label}` is nested too deeply") from error
    except ValueError as error:
        raise InputError(f"`{label}` is not valid JSON", why=str(error)) from error
    if not isinstance(parsed, dict):
        raise InputError(f"`{label}` does not hold a JSON object", why=f"it holds a {type(parsed).__name__}")
    return parsed


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) == len(pairs):
        return unique
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _DuplicateKeyError(f"the key `{key[:200]}` appears twice")
        seen.add(key)
    return unique
