"""Who may write into the output folder: a new run, the same run resumed, or `--overwrite` over what tq wrote.

A folder that holds anything that tq did not write is never touched.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqcli import __version__
from tqcli.checkpoint.journal import JOURNAL_NAME, Journal
from tqcli.checkpoint.sidecars import CONFIG_NAME, INDEX_NAME, sidecars
from tqcli.checkpoint.storage import LocalFolder
from tqcli.checkpoint.writer import PARTIAL_SUFFIX, disk_errors
from tqcli.documents import RECIPE_NAME, TQ_CONFIG_NAME
from tqcli.errors import InputError
from tqcli.plan import Plan

_WRITTEN = (CONFIG_NAME, INDEX_NAME, TQ_CONFIG_NAME, RECIPE_NAME, JOURNAL_NAME)
_ANOTHER = "--overwrite, or another folder"


@contextmanager
def claim(plan: Plan, folder: Path, *, overwrite: bool) -> Iterator[Journal]:
    """Check the folder, make it if need be, and hold its journal for this plan.

    Raises InputError where the folder holds something else, or another conversion.
    """
    check(plan, folder, overwrite=overwrite)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = _known_files(folder)
    with Journal(folder) as journal:
        begun = _begun(plan)
        if journal.begun != begun:
            _clear(folder, known)
            journal.begin(begun)
        yield journal


def check(plan: Plan, folder: Path, *, overwrite: bool) -> None:
    """The same questions as `claim`, without writing anything."""
    _check_apart(plan, folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"`{folder}` is a file", fix="name a folder")
    if not any(folder.iterdir()):
        return
    known = _known_files(folder)
    foreign = sorted(path.name for path in folder.iterdir() if not _ours(path.name, known))
    if foreign:
        what = f"`{folder}` holds something else"
        raise InputError(what, why=f"such as `{foreign[0]}`", fix="choose another folder")
    if overwrite:
        return
    if not (folder / JOURNAL_NAME).exists():
        raise InputError(f"`{folder}` holds a converted checkpoint", fix=_ANOTHER)
    _check_same(plan, folder)


def _check_apart(plan: Plan, folder: Path) -> None:
    storage = plan.source.storage
    if isinstance(storage, LocalFolder) and folder.resolve() == Path(storage.label).resolve():
        raise InputError("source and output are the same folder", fix="choose another output folder")


def _check_same(plan: Plan, folder: Path) -> None:
    """An interrupted run goes on only with what it began with."""
    with Journal(folder) as journal:
        begun = journal.begun
    wanted = _begun(plan)
    if not begun or begun == wanted:
        return
    if begun.get("source") != wanted["source"]:
        why = "its weights, their order or their files are not what they were"
        raise InputError(f"the source changed since `{folder}` was begun", why=why, fix=_ANOTHER)
    what = f"`{folder}` was begun with another recipe"
    raise InputError(what, why=_difference(begun, wanted), fix=_ANOTHER)


def _difference(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    old = {**begun, **_mapping(begun.get("recipe"))}
    new = {**wanted, **_mapping(wanted.get("recipe"))}
    changed = [key for key in {**old, **new} if key != "recipe" and old.get(key) != new.get(key)]
    return "; ".join(_change(key, old.get(key), new.get(key)) for key in changed)


def _change(key: str, old: object, new: object) -> str:
    if key == "shards":
        return "the shards are cut elsewhere"
    return f"{key} was {json.dumps(old)}, is now {json.dumps(new)}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _begun(plan: Plan) -> dict[str, Any]:
    copied, _ = sidecars(plan.source.storage)
    # Through JSON and back, so that it compares equal with what the journal gives.
    begun: dict[str, Any] = json.loads(
        json.dumps(
            {
                "tool": f"tqcli {__version__}",
                "source": plan.source.fingerprint(),
                "recipe": plan.recipe.to_flat(),
                "shards": [[shard.name, shard.file_bytes] for shard in plan.shards],
                "files": copied,
            }
        )
    )
    return begun


def _known_files(folder: Path) -> set[str]:
    """Names at the top of the folder that a conversion wrote, or was about to write; empty where none ran here."""
    names: set[str] = set()
    if (folder / JOURNAL_NAME).exists():
        with Journal(folder) as journal:
            names.update(_top_names(journal.begun.get("files")))
    elif (folder / TQ_CONFIG_NAME).exists():
        names.update(_top_names(_read_object(folder / TQ_CONFIG_NAME).get("files")))
    else:
        return set()
    return names | set(_WRITTEN)


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return {}


def _top_names(files: object) -> set[str]:
    if not isinstance(files, list):
        return set()
    return {name.partition("/")[0] for name in files if isinstance(name, str)}


def _ours(name: str, known: set[str]) -> bool:
    plain = name.removesuffix(PARTIAL_SUFFIX)
    return bool(known) and (plain in known or (plain.startswith("model") and plain.endswith(".safetensors")))


def _clear(folder: Path, known: set[str]) -> None:
    """Remove what an earlier conversion wrote; the journal, held open, is emptied by its owner."""
    with disk_errors(folder):
        for path in folder.iterdir():
            if path.name == JOURNAL_NAME or not _ours(path.name, known):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
