"""`quantization_config` of a native folder: which format each weight is in, as engines read it. Written and read here.

A default, the weights that differ from it, and one codebook a width of the trellis format. Left out: files, tensors.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from tq_kernels.trellis import BITS

from tqcli.errors import InputError
from tqcli.formats.native import QUANT_METHOD, version_of
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform
from tqcli.version import __version__

NativeFormat = Tq | Trellis | Uniform
CODEBOOKS = "codebooks"

_CLASSES: Mapping[str, type[NativeFormat]] = {"tq": Tq, "trellis": Trellis, "uniform": Uniform}
# What decoders must be told; everything else of a format is its encoder's.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "tq": ("bits", "group_size", "seed"),
    "trellis": ("bits", "rotation", "seed"),
    "uniform": ("bits", "group_size"),
}


def section(default: NativeFormat, formats: Mapping[str, NativeFormat]) -> dict[str, Any]:
    """The section for weights in these formats, by name. `default` may be none of theirs.

    Raises InputError where the trellis weights of one width have two codebooks.
    """
    every = (default, *formats.values())
    version = version_of(one.format for one in every)
    # Readers read the default too, even where no weight is in it.
    books = {**codebooks([default]), **codebooks(formats.values())}
    differing = {name: entry(one) for name, one in formats.items() if entry(one) != entry(default)}
    return {
        "quant_method": QUANT_METHOD,
        "format_version": version,
        **_without_format(entry(default), version),
        **({CODEBOOKS: dict(sorted(books.items()))} if books else {}),
        **({"tensors": {name: _without_format(one, version) for name, one in differing.items()}} if differing else {}),
        "tool": f"tqcli {__version__}",
    }


def entry(stored_as: NativeFormat) -> dict[str, Any]:
    """What is said of one weight."""
    return {"format": stored_as.format, **stored_as.config()}


def levels_of(stored_as: object) -> str:
    """The codebook of a trellis format; empty for all others."""
    return stored_as.levels if isinstance(stored_as, Trellis) else ""


def codebooks(formats: Iterable[NativeFormat]) -> dict[str, str]:
    """Width -> codebook of the trellis weights. Raises InputError where one width has two."""
    found: dict[str, str] = {}
    for one in formats:
        if isinstance(one, Trellis) and found.setdefault(str(one.bits), one.levels) != one.levels:
            raise InputError(f"trellis weights of {one.bits} bits have two codebooks", why="a folder has one a width")
    return dict(sorted(found.items()))


def read_format(said: Mapping[str, Any], default: Mapping[str, Any], where: str) -> NativeFormat:
    """The format that an entry stands for. default: the section, for keys that the entry lacks, and its codebooks.

    Raises InputError for an unknown format and for values out of range.
    """
    name = said.get("format", "tq")
    if not isinstance(name, str) or name not in _CLASSES:
        raise InputError(f"{where} is in a format that is not known here", why=json.dumps(name)[:80])
    inherited = default if default.get("format", "tq") == name else {}
    keys = {key: value for key in _KEYS[name] if (value := said.get(key, inherited.get(key))) is not None}
    if name == "trellis":
        keys["codebook"] = _codebook(default, keys.get("bits"), where)
    try:
        return _CLASSES[name].model_validate(keys)
    except ValidationError as error:
        problem = error.errors()[0]
        why = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        raise InputError(f"{where} is no `{name}` format", why=why) from error


def _codebook(default: Mapping[str, Any], bits: object, where: str) -> Any:
    """The folder's codebook of a width; None where it is the format's own."""
    books = default.get(CODEBOOKS)
    levels = books.get(str(bits)) if isinstance(books, Mapping) else None
    if levels is None:
        raise InputError(f"{where} has no codebook", why=f"`{CODEBOOKS}` has none of {json.dumps(bits)[:80]} bits")
    if isinstance(levels, str) and not levels.strip("0"):
        raise InputError(f"{where} has no codebook", why=f"the one of {json.dumps(bits)[:80]} bits is all zeros")
    known = bits in BITS and levels == Trellis.model_validate({"bits": bits}).levels
    return None if known else levels


def _without_format(said: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Readers of version 1 know one format, and its folders do not name it."""
    return {key: value for key, value in said.items() if version > 1 or key != "format"}
