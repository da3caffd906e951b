"""Put a checkpoint's files into a repository of the Hub: sign in, make the repository, upload, one commit, look again.

The files are uploaded one by one to the Hub's content store, which keeps them though no commit names them yet, and
become visible in a single commit. So a push that breaks off changes nothing that readers see, running it again sends
only what the store lacks, and removed shards go in the very moment in which the new ones come: `upload_folder`, which
commits large folders in parts, would leave a checkpoint half old and half new in between. The commit names its parent,
so that nothing is removed by a listing that is out of date. huggingface_hub does all requests; left out here: which
files (`push_files`), what failures mean (`push_failures`), the card.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

from tqcli.checkpoint.storage import MAX_FILES
from tqcli.errors import InputError, MachineError
from tqcli.hub.failures import with_retries
from tqcli.hub.fetch import is_hub_id
from tqcli.hub.push_failures import push_errors, unwrapped
from tqcli.hub.push_files import Changes, PushedFile, RemoteFile, is_same

# The file whose turn it is, its number from 1, how many there are.
Uploaded = Callable[[PushedFile, int, int], None]

_MAIN = "main"
_REQUEST_WAITS = (1.0, 2.0)
# Smaller ones travel inside the commit.
_SENT_ALONE = 1 << 20
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PULL_REQUEST = re.compile(r"refs/pr/[0-9]{1,9}")


@dataclass(frozen=True)
class Destination:
    """Where to. private: make a new repository so. revision: a branch, or `refs/pr/N`. create_pr: ask its owners."""

    repository: str
    private: bool = False
    revision: str = _MAIN
    create_pr: bool = False


@dataclass(frozen=True)
class Target:
    """A repository that is there. commit: what its revision stands for now; files: what that holds."""

    destination: Destination
    private: bool
    commit: str
    files: dict[str, RemoteFile]


def check_destination(destination: Destination) -> None:
    """Raises InputError for a name, a branch or a combination that the Hub cannot take; asks nobody."""
    repository, revision = destination.repository, destination.revision
    if not is_hub_id(repository):
        raise InputError(f"`{repository[:120]}` is not a Hub id", fix="Hub ids look like `owner/name`")
    plain = len(revision) <= 100 and _BRANCH.fullmatch(revision) and ".." not in revision
    if not plain or _COMMIT.fullmatch(revision) or revision.endswith((".lock", ".", "/")):
        raise InputError(f"`{revision[:120]}` is no branch that can be pushed to", fix="such as `main` or `tq3`")
    if destination.create_pr and revision != _MAIN:
        raise InputError("`--create-pr` and `--revision` cannot go together", why="a pull request is against `main`")


def sign_in(repository: str) -> str:
    """The name of the account that the token of this machine is of. Raises MachineError where there is none."""
    with push_errors(repository), quiet_library():
        account = with_retries(_api().whoami, _REQUEST_WAITS)
    if not isinstance(account, dict) or not isinstance(account.get("name"), str):
        raise MachineError("the Hub does not say whose the token is")
    if _role(account) == "read":
        fix = "run `hf auth login` with a token that may write, or set HF_TOKEN"
        raise MachineError(f"this login may not write to `{repository}`", why="its token may only read", fix=fix)
    return str(account["name"])[:100]


def open_target(destination: Destination) -> Target:
    """The repository, made where it is not there, and its branch likewise; with what it holds now.

    Raises InputError where it is public and was to be private, MachineError where the Hub refuses or fails.
    """
    api, repository = _api(), destination.repository
    with push_errors(repository, destination.revision), quiet_library():
        create = partial(api.create_repo, repository, private=destination.private or None, exist_ok=True)
        with_retries(create, _REQUEST_WAITS)
        info = _info(api, repository, _MAIN)
        if destination.private and info.private is not True:
            what = f"`{repository}` is there already, and public"
            raise InputError(what, why="`--private` was asked for", fix="make it private in its settings, or leave out")
        if destination.revision != _MAIN:
            if not _PULL_REQUEST.fullmatch(destination.revision):
                branch = partial(api.create_branch, repository, branch=destination.revision, exist_ok=True)
                with_retries(branch, _REQUEST_WAITS)
            info = _info(api, repository, destination.revision)
        return Target(destination, info.private is True, str(info.sha), _listed(info, repository))


def upload(target: Target, changes: Changes, message: str, progress: Uploaded) -> tuple[str, list[str]]:
    """Upload what differs, commit it, remove what is stale, and look at the result.

    Returns the address of what was made, and what the Hub remarked. Raises MachineError; nothing is committed then,
    or all.
    """
    api, destination = _api(), target.destination
    if not changes.upload and not changes.removed:
        return page(destination), []
    where: dict[str, Any] = {"revision": destination.revision, "create_pr": destination.create_pr}
    additions = [CommitOperationAdd(file.name, _content(file)) for file in changes.upload]
    deletions = [CommitOperationDelete(name, is_folder=False) for name in changes.removed]
    with push_errors(destination.repository, destination.revision), quiet_library():
        alone = [pair for pair in zip(changes.upload, additions, strict=True) if _is_sent_alone(pair[0])]
        for number, (file, addition) in enumerate(alone, 1):
            progress(file, number, len(alone))
            unwrapped(partial(api.preupload_lfs_files, destination.repository, [addition], free_memory=False, **where))
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            # Its text is the Hub's: shown by whoever prints, made safe.
            commit = unwrapped(
                lambda: api.create_commit(
                    destination.repository,
                    [*additions, *deletions],
                    commit_message=message,
                    parent_commit=target.commit,
                    **where,
                )
            )
        _check_arrived(api, target, changes, str(commit.oid))
    pull_request = getattr(commit, "pr_url", None)
    return str(pull_request or page(destination)), [_line(one) for one in remarks if one.category is UserWarning]


def page(destination: Destination) -> str:
    """The address of a repository, or of a branch of it."""
    home = f"{constants.ENDPOINT}/{destination.repository}"
    if destination.revision == _MAIN:
        return home
    number = destination.revision.removeprefix("refs/pr/")
    return f"{home}/discussions/{number}" if number != destination.revision else f"{home}/tree/{destination.revision}"


@contextmanager
def quiet_library() -> Iterator[None]:
    """Without huggingface_hub's own bars and log: its log names addresses that are signed."""
    verbosity, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _api() -> HfApi:
    return HfApi(library_name="tqcli")


def _is_sent_alone(file: PushedFile) -> bool:
    return file.size >= _SENT_ALONE or file.name.endswith(".safetensors")


def _line(remark: warnings.WarningMessage) -> str:
    return " ".join(str(remark.message).split())[:500]


def _role(account: dict[str, Any]) -> object:
    """`read`, `write` or `fineGrained`; None where it is not told."""
    said: Any = account
    for key in ("auth", "accessToken", "role"):
        said = said.get(key) if isinstance(said, dict) else None
    return said


def _content(file: PushedFile) -> str | bytes:
    if isinstance(file.content, Path):
        if not file.content.is_file():
            raise MachineError(f"`{file.name}` is gone", why="it was there when it was read")
        return str(file.content)
    return file.content


def _info(api: HfApi, repository: str, revision: str) -> Any:
    ask = partial(api.model_info, repository, revision=revision, files_metadata=True)
    return with_retries(ask, _REQUEST_WAITS)


def _listed(info: Any, repository: str) -> dict[str, RemoteFile]:
    siblings = info.siblings or []
    if len(siblings) > MAX_FILES:
        raise InputError(f"`{repository}` holds more than {MAX_FILES} files", why="a checkpoint has far fewer")
    files: dict[str, RemoteFile] = {}
    for sibling in siblings:
        identity = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if not isinstance(sibling.rfilename, str) or type(sibling.size) is not int or not isinstance(identity, str):
            raise MachineError(f"the Hub does not say what `{repository}` holds")
        files[sibling.rfilename] = RemoteFile(sibling.size, identity)
    return files


def _check_arrived(api: HfApi, target: Target, changes: Changes, commit: str) -> None:
    """A file that the Hub ignored, or took for another, must not go unnoticed."""
    repository = target.destination.repository
    there = _listed(_info(api, repository, commit), repository)
    missing = [file.name for file in changes.upload if not is_same(file, there.get(file.name))]
    missing += [name for name in changes.removed if name in there]
    if missing:
        what = f"`{repository}` does not hold what was pushed"
        why = f"`{missing[0]}` differs there; the folder may have changed meanwhile, or a `.gitignore` there hides it"
        raise MachineError(what, why=why, fix="do not use it before a push ends well")
