"""The journal of a conversion: what was begun, and which shards are whole. One JSON object a line, flushed each.

It lies in the output folder until the work is verified, so a folder that holds one is visibly unfinished. A lock on
it keeps a second process out. Left out: what to do with what the journal says.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqcli.checkpoint.writer import disk_errors
from tqcli.errors import InputError, MachineError

JOURNAL_NAME = ".tq-journal.jsonl"


@dataclass(frozen=True)
class FinishedShard:
    """A shard that was written, flushed and renamed. sha256: stored tensor name -> hex digest of its bytes."""

    name: str
    nbytes: int
    sha256: Mapping[str, str]


class Journal:
    """An open, locked journal. `begun` is its first line; empty for a new one. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_NAME
        with disk_errors(self.path):
            self._file = self.path.open("a+", encoding="utf-8")
        try:
            self._lock()
            self.begun, self.finished = _parse(self.path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def begin(self, begun: Mapping[str, Any]) -> None:
        """Start anew: forget what the journal held and write its first line."""
        with disk_errors(self.path):
            self._file.truncate(0)
        self._append(dict(begun))
        self.begun, self.finished = dict(begun), {}

    def add(self, shard: FinishedShard) -> None:
        """Note a shard that has its final name."""
        self._append({"shard": shard.name, "bytes": shard.nbytes, "sha256": dict(shard.sha256)})
        self.finished[shard.name] = shard

    def remove(self) -> None:
        """The work is done and verified."""
        with disk_errors(self.path):
            self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            what = f"another process is converting into `{self.path.parent}`"
            raise MachineError(what, why=str(error), fix="wait for it, or choose another folder") from error

    def _append(self, entry: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            self._file.write(json.dumps(entry, sort_keys=True) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, FinishedShard]]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    # What follows the last newline was cut off in the middle of being written.
    entries = [_entry(path, line) for line in lines[:-1]]
    if len(lines) > 1 and lines[-1]:
        _drop_torn_line(path, lines[-1])
    if not entries:
        return {}, {}
    shards = [_shard(path, entry) for entry in entries[1:]]
    return entries[0], {shard.name: shard for shard in shards}


def _drop_torn_line(path: Path, torn: str) -> None:
    size = path.stat().st_size - len(torn.encode("utf-8", errors="replace"))
    os.truncate(path, max(size, 0))


def _entry(path: Path, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        raise InputError(f"`{path}` is damaged", fix="--overwrite, or another folder")
    return entry


def _shard(path: Path, entry: Mapping[str, Any]) -> FinishedShard:
    match entry:
        case {"shard": str(name), "bytes": int(nbytes), "sha256": dict(sha256)}:
            return FinishedShard(name, nbytes, sha256)
    raise InputError(f"`{path}` is damaged", fix="--overwrite, or another folder")
