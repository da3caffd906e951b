"""Who may write into the output folder: a new run, the same run resumed, or `--overwrite` over what tq wrote.

Where the same run has ended already there is nothing to write.
A folder that holds anything that tq did not write is never touched.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqcli.checkpoint.journal import JOURNAL_NAME, Journal, read_begun
from tqcli.checkpoint.sidecars import CONFIG_NAME, INDEX_NAME, sidecars
from tqcli.checkpoint.storage import LocalFolder
from tqcli.checkpoint.writer import PARTIAL_SUFFIX, disk_errors
from tqcli.errors import InputError, MachineError
from tqcli.finished import is_finished
from tqcli.formats.hlwq_files import HLWQ_CONFIG_NAME
from tqcli.formats.native import RECIPE_NAME, TQ_CONFIG_NAME
from tqcli.plan import Plan
from tqcli.version import __version__

_WRITTEN = (CONFIG_NAME, INDEX_NAME, HLWQ_CONFIG_NAME, TQ_CONFIG_NAME, RECIPE_NAME, JOURNAL_NAME)
SHARD = re.compile(r"model(?:-[0-9]{5}-of-[0-9]{5})?\.safetensors")
_ANOTHER = "--overwrite, or another folder"
_MAX_SHOWN = 60


@contextmanager
def claim(plan: Plan, folder: Path, *, overwrite: bool) -> Iterator[Journal]:
    """Check the folder, make it if need be, and hold its journal for this plan.

    Raises InputError where the folder holds something else or a whole conversion, MachineError where a second process
    works in it.
    """
    if check(plan, folder, overwrite=overwrite):
        raise _converted(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = _known_files(folder)
    with Journal(folder) as journal:
        begun = _begun(plan)
        if journal.begun != begun:
            _clear(folder, known)
            journal.begin(begun)
        yield journal


def check(plan: Plan, folder: Path, *, overwrite: bool) -> bool:
    """The same questions as `claim`, without writing anything. True: what is wanted is there, finished."""
    _check_apart(plan, folder)
    _check_writable(folder)
    with disk_errors(folder):
        if not folder.exists():
            return False
        if not folder.is_dir():
            raise InputError(f"`{folder}` is a file", fix="name a folder")
        if not any(folder.iterdir()):
            return False
    known = _known_files(folder)
    foreign = next(_foreign(folder, known), None)
    if foreign is not None:
        what = f"`{folder}` holds something else"
        raise InputError(what, why=f"tq did not write `{foreign}`", fix="choose another folder")
    begun = read_begun(folder)
    if overwrite:
        return False
    if begun is None:
        if is_finished(plan, folder):
            return True
        raise _converted(folder)
    if begun:
        _check_same(folder, begun, _begun(plan))
    return False


def _converted(folder: Path) -> InputError:
    return InputError(f"`{folder}` holds another converted checkpoint", fix=_ANOTHER)


def _check_apart(plan: Plan, folder: Path) -> None:
    storage = plan.source.storage
    if not isinstance(storage, LocalFolder):
        return
    source, output = storage.path, folder.resolve()
    fix = "choose another output folder"
    if output == source:
        raise InputError("source and output are the same folder", fix=fix)
    if output.is_relative_to(source):
        raise InputError(f"`{folder}` lies inside the source folder", why="the source is never written to", fix=fix)
    if source.is_relative_to(output):
        raise InputError(f"`{folder}` holds the source", why="the source is never written to", fix=fix)


def _check_writable(folder: Path) -> None:
    """Said before anything is fetched. The folder itself may not be there yet."""
    with disk_errors(folder):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    why = ""
    if there != folder.absolute() and not there.is_dir():
        why = f"`{there}` is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK) and there.is_dir():
        why = f"no permission to write into `{there}`"
    if why:
        raise MachineError(f"`{folder}` cannot be written", why=why)


def _begun(plan: Plan) -> dict[str, Any]:
    copied, _ = sidecars(plan.source.storage)
    # Through JSON and back, so that it compares equal with what the journal gives.
    begun: dict[str, Any] = json.loads(
        json.dumps(
            {
                "tool": f"tqcli {__version__}",
                "model": plan.source.storage.origin,
                "revision": plan.source.storage.revision,
                "source": plan.fingerprint,
                "recipe": plan.recipe.to_flat(),
                "shards": [[shard.name, shard.file_bytes] for shard in plan.shards],
                "files": copied,
            }
        )
    )
    return begun


def _check_same(folder: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """An interrupted run goes on only with what it began with. The first difference found is the one to show."""
    if begun == wanted:
        return
    differences = (
        ("with another tq", _changes(begun, wanted, "tool")),
        ("from another source", _changes(begun, wanted, "model", "revision")),
        ("with another recipe", _recipe_changes(begun, wanted)),
        ("from a source that changed", _source_change(begun, wanted)),
        ("with another shard size", _shard_change(begun, wanted)),
    )
    how, why = next((one for one in differences if one[1]), ("otherwise", ""))
    raise InputError(f"`{folder}` was begun {how}", why=why, fix=_ANOTHER)


def _changes(begun: Mapping[str, Any], wanted: Mapping[str, Any], *keys: str) -> str:
    changed = [key for key in keys if begun.get(key) != wanted.get(key)]
    return "; ".join(f"{key} was {_short(begun.get(key))}, is now {_short(wanted.get(key))}" for key in changed)


def _recipe_changes(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    old, new = _mapping(begun.get("recipe")), _mapping(wanted.get("recipe"))
    return _changes(old, new, *dict.fromkeys((*old, *new)))


def _source_change(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if begun.get("source") != wanted["source"]:
        return "its weights or its `config.json` are not what they were, or were written again"
    old, new = _names(begun.get("files")), _names(wanted["files"])
    changed = sorted(old ^ new)
    if not changed:
        return ""
    return f"`{changed[0]}` was {'there' if changed[0] in old else 'not there'}"


def _shard_change(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    old, new = begun.get("shards"), wanted["shards"]
    if old == new:
        return ""
    count = len(old) if isinstance(old, list) else 0
    return f"{count} shards were begun, now they would be {len(new)}, cut at other places"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(files: object) -> set[str]:
    return {name for name in files if isinstance(name, str)} if isinstance(files, list) else set()


def _known_files(folder: Path) -> set[str]:
    """What a conversion wrote, or was about to write: relative names. Empty where none ran here."""
    begun, config = read_begun(folder), _our_config(folder)
    if begun is None and not config:
        return set()
    shards = {str(one[0]) for one in _mapping(begun).get("shards", ()) if isinstance(one, list) and one}
    listed = _names(config.get("files")) | _names(config.get("shards"))
    return shards | _names(_mapping(begun).get("files")) | listed | set(_WRITTEN)


def _our_config(folder: Path) -> Mapping[str, Any]:
    """tq_config.json, if this tool wrote it; published checkpoints have one too."""
    try:
        config = _mapping(json.loads((folder / TQ_CONFIG_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if str(config.get("tool")).startswith("tqcli ") else {}


def _foreign(folder: Path, known: set[str]) -> Iterator[str]:
    """Relative names of what is there and is not ours. Links to folders are never ours."""
    ours = {parent.as_posix() for name in known for parent in Path(name).parents}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        relative = Path(parent).relative_to(folder)
        names = [(relative / name).as_posix() for name in folders]
        for name, plain in zip(names, folders, strict=True):
            if name not in ours or Path(parent, plain).is_symlink():
                yield name + "/"
        for file in sorted(files):
            name = (relative / file).as_posix()
            if not _ours(name, known):
                yield name


def _ours(name: str, known: set[str]) -> bool:
    plain = name.removesuffix(PARTIAL_SUFFIX)
    return bool(known) and (plain in known or SHARD.fullmatch(plain) is not None)


def _clear(folder: Path, known: set[str]) -> None:
    """Remove what an earlier conversion wrote; the journal, held open, is emptied by its owner.

    config.json goes first, so that what is left cannot be taken for whole, and tq_config.json last: it knows the rest.
    """
    with disk_errors(folder):
        (folder / CONFIG_NAME).unlink(missing_ok=True)
        # Deepest first, so that folders are empty when their turn comes.
        for path in sorted(folder.rglob("*"), reverse=True):
            name = path.relative_to(folder).as_posix()
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif name not in (JOURNAL_NAME, TQ_CONFIG_NAME) and _ours(name, known):
                path.unlink()
        (folder / TQ_CONFIG_NAME).unlink(missing_ok=True)
