"""Does config.json, by which engines load, say the same of every weight as the folder and its tq_config.json do?

A native folder lists its tensors there, an MLX folder its modules, a compressed-tensors folder the modules to be left
alone: a word changed there makes engines read other weights than those that were checked. Left out: the weights.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tqcli.checkpoint.reader import Checkpoint
from tqcli.errors import CheckFailed, InputError
from tqcli.formats.native_section import levels_of, read_format
from tqcli.layouts.compressed_tensors import IGNORED, matches_module
from tqcli.readers.find import Contents

_WEIGHT = ".weight"


def check_section(output: Checkpoint, contents: Contents) -> None:
    """Raises CheckFailed naming the weight of which two files differ."""
    _check_record(contents)
    if contents.layout == "native":
        _check_tensors(_mapping(output.config.get("quantization_config")), contents)
    elif contents.layout == "mlx":
        _check_modules(output.config, contents)
    elif contents.layout == "compressed_tensors":
        _check_ignored(output, contents)


def _check_record(contents: Contents) -> None:
    """What the record says of a weight is how its reader found it."""
    tensors = _mapping(contents.record.get("tensors"))
    for name, packed in contents.packed.items():
        entry = _mapping(tensors.get(name))
        wanted = {"format": packed.format.format, **packed.format.config()}
        # Folders of the first versions, which knew one format, do not name it.
        if {"format": packed.format.format, **{key: entry.get(key) for key in wanted if key in entry}} != wanted:
            raise CheckFailed(f"`{name}` is not as `tq_config.json` says", why=f"it is {packed.format.label}")


def _check_tensors(section: Mapping[str, Any], contents: Contents) -> None:
    tensors = _mapping(section.get("tensors"))
    for name, packed in contents.packed.items():
        why = f"`tq_config.json` says {packed.format.label}"
        try:
            said = read_format({**section, **_mapping(tensors.get(name))}, section, f"`{name}`")
        except InputError as error:
            raise CheckFailed(f"`{name}` is not as `config.json` says", why=error.why) from error
        if said.config() != packed.format.config() or levels_of(said) != levels_of(packed.format):
            raise CheckFailed(f"`{name}` is not as `config.json` says", why=why)
    _check_known(tensors, contents.packed)


def _check_modules(config: Mapping[str, Any], contents: Contents) -> None:
    """mlx_lm reads `quantization`, transformers' hub `quantization_config`."""
    section = _mapping(config.get("quantization"))
    if section != _mapping(config.get("quantization_config")):
        raise CheckFailed("`quantization` and `quantization_config` of `config.json` differ")
    entries = [name for name, value in section.items() if isinstance(value, Mapping)]
    _check_known(entries, {name.removesuffix(_WEIGHT) for name in contents.packed})


def _check_ignored(output: Checkpoint, contents: Contents) -> None:
    section = _mapping(output.config.get("quantization_config"))
    listed = section.get("ignore")
    patterns = [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    for one in patterns:
        # A pattern of unknown origin may take forever to match.
        if one.startswith("re:") and one not in IGNORED:
            raise CheckFailed(f"`ignore` in `config.json` holds `{one[:80]}`", why="tq writes no such pattern")
    for name in contents.packed:
        if _is_ignored(name, patterns):
            raise CheckFailed(f"`{name}` is compressed", why="`ignore` in `config.json` says that it is not")
    inside = contents.plain_names
    for name, tensor in output.tensors.items():
        kept_matrix = name.endswith(_WEIGHT) and len(tensor.shape) == 2 and name not in inside
        if contents.packed and kept_matrix and not _is_ignored(name, patterns):
            raise CheckFailed(f"`{name}` is not compressed", why="`ignore` in `config.json` does not say so")


def _is_ignored(name: str, patterns: Iterable[str]) -> bool:
    return any(matches_module(pattern, name.removesuffix(_WEIGHT)) for pattern in patterns)


def _check_known(names: Iterable[str], packed: Iterable[str]) -> None:
    known = set(packed)
    for name in names:
        if name not in known:
            raise CheckFailed(f"`config.json` tells of `{name}`", why="there is no such packed tensor")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
