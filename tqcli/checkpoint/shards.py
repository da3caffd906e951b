"""Which safetensors files make up a checkpoint: the index says, or the names of the files do.

Works on names and sizes alone; the headers are the reader's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.storage import Storage
from tqcli.errors import InputError

MAX_JSON_BYTES = 64 << 20

_INDEX_SUFFIX = ".safetensors.index.json"
_MAIN_INDEX = "model" + _INDEX_SUFFIX
_SINGLE = "model.safetensors"
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})\.safetensors")
_OTHER_WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True)
class Selection:
    """`shards`: names of the files, sorted. `weight_map`: tensor -> file, when there is an index."""

    shards: tuple[str, ...]
    weight_map: Mapping[str, str] | None
    index_bytes: bytes | None
    ignored: tuple[tuple[str, str], ...]


def select_shards(storage: Storage) -> Selection:
    """The files that hold the checkpoint's tensors. Raises InputError when they are missing or ambiguous."""
    top = sorted(name for name in storage.files() if "/" not in name)
    candidates = [name for name in top if name.endswith(".safetensors")]
    index, unused_indexes = _choose_index(top, storage.label)
    if index is None:
        if not candidates:
            raise _no_weights(storage)
        chosen = _without_index(candidates, storage.label)
        reason = "another layout of the same weights"
        ignored = [(name, reason) for name in candidates if name not in chosen]
        return Selection(tuple(chosen), None, None, tuple(ignored))
    index_bytes = read_bounded(storage, index)
    weight_map = _weight_map(index_bytes, index)
    chosen = sorted(set(weight_map.values()))
    if _SINGLE in candidates and not set(chosen) & set(candidates):
        # Some converters copy the source's index beside their one file; transformers reads the file.
        return Selection((_SINGLE,), None, None, ((index, "stale: none of the files that it names is here"),))
    _check_present(chosen, storage, index)
    ignored = [(name, f"not named by {index}") for name in candidates if name not in set(chosen)]
    ignored += [(name, f"{index} is used") for name in unused_indexes]
    return Selection(tuple(chosen), weight_map, index_bytes, tuple(ignored))


def read_bounded(storage: Storage, name: str) -> bytes:
    """A JSON file, whole. Raises InputError when it is larger than any honest one."""
    size = storage.files()[name]
    if size > MAX_JSON_BYTES:
        raise InputError(f"`{name}` is too large", why=f"it is {size} bytes, the limit is {MAX_JSON_BYTES}")
    return storage.read(name, 0, size)


def _choose_index(top: list[str], label: str) -> tuple[str | None, list[str]]:
    indexes = [name for name in top if name.endswith(_INDEX_SUFFIX)]
    if _MAIN_INDEX in indexes:
        return _MAIN_INDEX, [name for name in indexes if name != _MAIN_INDEX]
    if len(indexes) > 1:
        raise InputError(
            f"`{label}` has several indexes and none is `{_MAIN_INDEX}`",
            why=", ".join(f"`{name}`" for name in indexes[:8]),
            fix="keep one of them in the folder",
        )
    return (indexes[0] if indexes else None), []


def _weight_map(raw: bytes, index: str) -> dict[str, str]:
    weight_map = parse_object(raw, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"`{index}` has no `weight_map`")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain(file):
            raise InputError(
                f"`{index}` names a file that is not a plain safetensors name",
                why=f"tensor `{tensor[:200]}` should be in `{str(file)[:200]}`",
            )
    return weight_map


def _is_plain(file: str) -> bool:
    hidden = file.startswith(".")
    return file.endswith(".safetensors") and not hidden and not any(mark in file for mark in "/\\\0")


def _check_present(chosen: list[str], storage: Storage, index: str) -> None:
    missing = [name for name in chosen if name not in storage.files()]
    if missing:
        raise InputError(
            f"`{storage.label}` is incomplete: {_few(missing)} missing",
            why=f"`{index}` names {len(chosen)} files, {len(missing)} of them not there",
            fix="finish the download",
        )


def _without_index(candidates: list[str], label: str) -> list[str]:
    model = [name for name in candidates if name.startswith("model")]
    if model and any(name.startswith("consolidated") for name in candidates):
        # Mistral publishes both layouts: the same weights under two sets of names.
        candidates = model
    _check_numbering(candidates, label)
    return candidates


def _check_numbering(candidates: list[str], label: str) -> None:
    present = set(candidates)
    sets = {(match["stem"], match["total"]) for name in candidates if (match := _NUMBERED.fullmatch(name))}
    for stem, total in sorted(sets):
        numbers = range(1, int(total) + 1)
        missing = [name for n in numbers if (name := f"{stem}-{n:05}-of-{total}.safetensors") not in present]
        if missing:
            raise InputError(
                f"`{label}` is incomplete: {_few(missing)} missing",
                why=f"the files' names say that there are {int(total)}",
                fix="finish the download",
            )


def _few(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{rest} {'is' if len(names) == 1 else 'are'}"


def _no_weights(storage: Storage) -> InputError:
    names = list(storage.files())
    what = f"`{storage.label}` holds no safetensors files"
    nested = [name for name in names if name.endswith(".safetensors")]
    if nested:
        return InputError(what, why=f"only its subfolders do: `{nested[0]}`", fix="name the subfolder instead")
    other = [name for name in names if name.endswith(_OTHER_WEIGHTS)]
    if not other:
        return InputError(what, fix="name a folder or a repository that holds a Hugging Face checkpoint")
    if other[0].endswith(".gguf"):
        why, fix = f"`{other[0]}` is GGUF, already quantised", "name the original checkpoint it was made from"
    else:
        why = f"`{other[0]}` is not read: formats like pickle can run code"
        fix = "save the model as safetensors with transformers first"
    return InputError(what, why=why, fix=fix)
