"""The journal of a conversion: what was begun, and which shards are whole. One JSON object a line, flushed each.

It lies in the output folder until the work is verified, so a folder that holds one is visibly unfinished. A lock on
it keeps a second process out. What cannot be read in it counts as not done. Left out: what to do with what it says.
"""

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqcli.checkpoint.writer import disk_errors
from tqcli.errors import MachineError

JOURNAL_NAME = ".tq-journal.jsonl"
_LOCKED = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@dataclass(frozen=True)
class FinishedShard:
    """A shard that was written, flushed and renamed. sha256: stored tensor name -> hex digest of its bytes."""

    name: str
    nbytes: int
    sha256: Mapping[str, str]


class Journal:
    """An open, locked journal. `begun` is its first line; empty for a new one. Use as a context manager.

    Raises MachineError where another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_NAME
        self._file = _open_locked(self.path, os.O_RDWR | os.O_CREAT)
        try:
            with disk_errors(self.path):
                self.begun, self.finished, self._end = _parse(_read(self._file))
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def begin(self, begun: Mapping[str, Any]) -> None:
        """Start anew: forget what the journal held and write its first line."""
        self.forget()
        self._append(begun)
        self.begun = dict(begun)

    def add(self, shard: FinishedShard) -> None:
        """Note a shard that has its final name."""
        self._append({"shard": shard.name, "bytes": shard.nbytes, "sha256": dict(shard.sha256)})
        self.finished[shard.name] = shard

    def forget(self) -> None:
        """Nothing in the folder can be relied on. It stays visibly unfinished."""
        with disk_errors(self.path):
            os.ftruncate(self._file, 0)
            os.fsync(self._file)
        self.begun, self.finished, self._end = {}, {}, 0

    def remove(self) -> None:
        """The work is done and verified."""
        with disk_errors(self.path):
            self.path.unlink(missing_ok=True)

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, sort_keys=True).encode() + b"\n"
        with disk_errors(self.path):
            # A line that was cut off in the middle of being written is written over.
            os.ftruncate(self._file, self._end)
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
            os.fsync(self._file)
        self._end += len(line)


def read_begun(folder: Path) -> dict[str, Any] | None:
    """The first line of the journal in `folder`; None where there is no journal. Writes nothing.

    Raises MachineError where another process holds it.
    """
    path = folder / JOURNAL_NAME
    if not path.exists():
        return None
    file = _open_locked(path, os.O_RDONLY)
    try:
        return _parse(_read(file))[0]
    finally:
        os.close(file)


def _open_locked(path: Path, flags: int) -> int:
    with disk_errors(path):
        file = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The process that held it may have finished and removed it meanwhile: that lock keeps nobody out.
        if not path.exists() or not os.path.samestat(os.fstat(file), path.stat()):
            raise _busy(path, "it finished just now")
    except OSError as error:
        os.close(file)
        if error.errno in _LOCKED:
            raise _busy(path, str(error)) from error
        raise MachineError(f"`{path}` cannot be locked", why=str(error)) from error
    except MachineError:
        os.close(file)
        raise
    return file


def _busy(path: Path, why: str) -> MachineError:
    what = f"another process is converting into `{path.parent}`"
    return MachineError(what, why=why, fix="wait for it, or choose another folder")


def _read(file: int) -> bytes:
    pieces = []
    position = 0
    while piece := os.pread(file, 1 << 20, position):
        pieces.append(piece)
        position += len(piece)
    return b"".join(pieces)


def _parse(raw: bytes) -> tuple[dict[str, Any], dict[str, FinishedShard], int]:
    """First line, finished shards, and the length of what could be read: up to the first line that is not whole."""
    begun: dict[str, Any] = {}
    finished: dict[str, FinishedShard] = {}
    end = 0
    for line in raw.split(b"\n")[:-1]:
        entry = _entry(line)
        shard = _shard(entry) if end else None
        if not entry or (end and shard is None):
            break
        if shard:
            finished[shard.name] = shard
        else:
            begun = entry
        end += len(line) + 1
    return begun, finished, end


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _shard(entry: Mapping[str, Any]) -> FinishedShard | None:
    match entry:
        case {"shard": str(name), "bytes": int(nbytes), "sha256": dict(sha256)}:
            return FinishedShard(name, nbytes, sha256)
    return None
