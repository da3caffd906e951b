"""Open a model that the user named: a folder on this machine, or a repository of the Hugging Face Hub.

The Hub's library is imported only when a Hub id is given, so that local work starts fast and runs without it.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tqcli.checkpoint.storage import LocalFolder, Storage
from tqcli.errors import InputError

if TYPE_CHECKING:
    from tqcli.hub.remote import HubFolder

# Bytes done, bytes in all. Called from the threads that download.
Progress = Callable[[int, int], None]

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_]|[.-](?![.-]))*"
_HUB_ID = re.compile(rf"{_NAME}/{_NAME}")
_MAX_ID_LENGTH = 96


def open_source(source: str, revision: str | None = None, *, token: str | bool | None = None) -> Storage:
    """The folder or the Hub repository that `source` names; a folder of that name wins.

    revision: branch, tag or commit, for the Hub only. token: for private and gated repositories; None uses
    the login of this machine. Raises InputError when there is no such thing, MachineError when the Hub cannot
    be reached.
    """
    if _exists(source):
        if revision is not None:
            raise InputError(
                f"`{source}` is a folder on this machine and has no revisions",
                why=f"revision `{revision}` was asked for",
                fix="leave the revision out, or name a Hub repository",
            )
        return LocalFolder(source)
    if not is_hub_id(source):
        raise InputError(
            f"`{source}` is neither a folder nor a Hub id", fix="name a folder that exists, or `owner/name`"
        )
    from tqcli.hub.remote import open_repository

    return open_repository(source, revision, token=token)


def download(folder: "HubFolder", names: Iterable[str], *, progress: Progress | None = None) -> LocalFolder:
    """Fetch `names` of `folder`, at its commit, into the Hugging Face cache and open them there.

    Files that are already there are not fetched again; broken downloads go on. Raises as `open_source` does.
    """
    from tqcli.hub.download import download_files

    return download_files(folder, tuple(names), progress)


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form of a repository id, `owner/name`."""
    plain = _HUB_ID.fullmatch(source) is not None and not source.endswith((".git", ".", "-"))
    return plain and len(source) <= _MAX_ID_LENGTH


def _exists(source: str) -> bool:
    try:
        return source != "" and Path(source).exists()
    except (OSError, ValueError):
        return False
