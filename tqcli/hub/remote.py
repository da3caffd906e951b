"""A repository of the Hub as a Storage: listed once, pinned to one commit, read by ranges, not kept on disk.

Addresses, logins and connections are huggingface_hub's. What is ours is the distrust: an answer that is not
exactly the range that was asked for is an error.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from tqcli.checkpoint.storage import MAX_FILES, LocalFolder, Storage
from tqcli.errors import InputError, MachineError
from tqcli.hub.failures import AnswerError, hub_errors, with_retries

# One request asks for at most this much, so that a broken connection costs little.
CHUNK_BYTES = 64 << 20

_LISTING_WAITS = (1.0, 2.0)
_READING_WAITS = (1.0, 2.0, 4.0, 8.0)
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


@dataclass(frozen=True)
class _File:
    size: int
    identity: str


class HubFolder:
    """One commit of a Hub repository. Safe to use from several threads."""

    def __init__(
        self, repository: str, commit: str, files: Mapping[str, _File], token: str | bool | None = None
    ) -> None:
        self.repository = repository
        self.token = token
        self._commit = commit
        self._files = files

    @property
    def label(self) -> str:
        """The repository id."""
        return self.repository

    @property
    def origin(self) -> str:
        """The repository id."""
        return self.repository

    @property
    def revision(self) -> str:
        """The commit that everything is read at."""
        return self._commit

    def files(self) -> Mapping[str, int]:
        """Relative name -> size in bytes, sorted by name."""
        return MappingProxyType({name: file.size for name, file in self._files.items()})

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of `name` from `offset`."""
        self._check_range(name, offset, length)
        buffer = bytearray(length)
        self.read_into(name, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of `name`. Failures that may pass are retried, chunk by chunk."""
        target = buffer.cast("B")
        size = self._check_range(name, offset, len(target))
        with hub_errors(self.repository, self._commit):
            for start in range(0, len(target), CHUNK_BYTES):
                chunk = target[start : start + CHUNK_BYTES]
                with_retries(partial(self._fetch, name, size, offset + start, chunk), _READING_WAITS)

    def fingerprint(self, name: str) -> str:
        """The hash of the content: SHA-256 for large files, git's for small ones."""
        return self._file(name).identity

    def _file(self, name: str) -> _File:
        file = self._files.get(name)
        if file is None:
            raise InputError(f"`{self.repository}` has no file `{name}`", why=f"at commit {self._commit}")
        return file

    def _check_range(self, name: str, offset: int, length: int) -> int:
        size = self._file(name).size
        if offset < 0 or length < 0 or offset + length > size:
            raise InputError(
                f"`{name}` in `{self.repository}` is too short",
                why=f"bytes {offset} to {offset + length} were asked for, it has {size}",
            )
        return size

    def _fetch(self, name: str, size: int, offset: int, target: memoryview) -> None:
        last = offset + len(target) - 1
        headers = build_hf_headers(token=self.token, library_name="tqcli")
        # A compressed answer would make lengths and ranges speak of other bytes.
        headers |= {"range": f"bytes={offset}-{last}", "accept-encoding": "identity"}
        url = hf_hub_url(self.repository, name, revision=self._commit)
        with _stream(url, headers) as response:
            hf_raise_for_status(response)
            _check_answer(response, offset, last, size)
            filled = 0
            for piece in response.iter_raw():
                if filled + len(piece) > len(target):
                    raise AnswerError(f"more than the {len(target)} bytes of `{name}` that were asked for")
                target[filled : filled + len(piece)] = piece
                filled += len(piece)
        if filled != len(target):
            raise AnswerError(f"{filled} of {len(target)} bytes of `{name}` came")


def open_repository(repository: str, revision: str | None, *, token: str | bool | None = None) -> Storage:
    """The repository at the commit that `revision` (default: main) stands for now.

    In offline mode it is what the local cache holds of it. Raises InputError, MachineError.
    """
    with hub_errors(repository, revision):
        if constants.is_offline_mode():
            return _cached(repository, revision)
        api = HfApi(token=token, library_name="tqcli")
        info = with_retries(
            lambda: api.model_info(
                repository, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            ),
            _LISTING_WAITS,
        )
        commit = info.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise MachineError(f"the Hub does not say which commit of `{repository}` this is")
    return HubFolder(repository, commit, _listed(info.siblings or [], repository), token)


def _cached(repository: str, revision: str | None) -> LocalFolder:
    # Hidden files are no part of a checkpoint, so a copy without them is whole.
    hidden = [".*", "*/.*"]
    return LocalFolder(snapshot_download(repository, revision=revision, local_files_only=True, ignore_patterns=hidden))


def _listed(siblings: list[Any], repository: str) -> dict[str, _File]:
    if len(siblings) > MAX_FILES:
        raise InputError(f"`{repository}` holds more than {MAX_FILES} files", why="a checkpoint has far fewer")
    files: dict[str, _File] = {}
    for sibling in sorted(siblings, key=lambda sibling: str(sibling.rfilename)):
        name = sibling.rfilename
        parts = _plain_parts(name, repository)
        if any(part.startswith(".") for part in parts):
            continue
        identity = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if type(sibling.size) is not int or sibling.size < 0 or not isinstance(identity, str):
            raise MachineError(f"the Hub does not say how large `{name}` in `{repository}` is, or which content it has")
        files[name] = _File(sibling.size, identity)
    return files


def _plain_parts(name: Any, repository: str) -> tuple[str, ...]:
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name or "\0" in name:
        raise InputError(f"`{repository}` lists a file with an unusable name", why=f"`{str(name)[:200]}`")
    return path.parts


@contextmanager
def _stream(url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    session = get_session()
    with session.stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as response:
        yield response


def _check_answer(response: Any, offset: int, last: int, size: int) -> None:
    """Raise unless the answer is these bytes of a file of this size, or all of it when all was asked for."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise AnswerError("the server compressed its answer although asked not to")
    if response.status_code == 200 and (offset, last) == (0, size - 1):
        return
    if response.status_code != 206:
        raise AnswerError(f"the server answered with status {response.status_code} instead of the range asked for")
    given = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if not given or (int(given[1]), int(given[2])) != (offset, last):
        raise AnswerError(f"the server sent another range than bytes {offset}-{last}")
    if given[3] not in ("*", str(size)):
        raise AnswerError(f"the file is {given[3]} bytes there, the listing said {size}")
