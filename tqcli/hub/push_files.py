"""The files of a checkpoint that are pushed, with their hashes, and what a push does to those that are there already.

Pure functions of two listings. Of the remote's files only those go that an earlier push of ours wrote by their names
and that this one has no more: shards, index, our own side files. All else stays. Left out: the Hub (`push`).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.sidecars import CONFIG_NAME, INDEX_NAME, sidecars
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError, MachineError
from tqcli.formats.hlwq_files import HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME
from tqcli.formats.native import RECIPE_NAME, TQ_CONFIG_NAME
from tqcli.hub.card_source import CARD_NAME
from tqcli.hub.results import RESULTS_NAME
from tqcli.output_folder import SHARD
from tqcli.readers.record import read_tq_config

_DOCUMENTS = (CONFIG_NAME, TQ_CONFIG_NAME, RECIPE_NAME, HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME)
_OUR_SIDE_FILES = (INDEX_NAME, TQ_CONFIG_NAME, RECIPE_NAME, HLWQ_CONFIG_NAME, RESULTS_NAME)
_WRITTEN_ANEW = (CARD_NAME, RESULTS_NAME)
_INDEX_SUFFIX = ".safetensors.index.json"
_CHUNK_BYTES = 8 << 20
_ANOTHER = "push to another repository or branch, or remove it there first"


@dataclass(frozen=True)
class PushedFile:
    """One file to be: its content, a path or the bytes, and both hashes that the Hub may know it by."""

    name: str
    content: Path | bytes
    size: int
    sha256: str
    git_sha1: str


@dataclass(frozen=True)
class RemoteFile:
    """One file that is there. identity: SHA-256 of a large file, git's hash of a small one."""

    size: int
    identity: str


@dataclass(frozen=True)
class Changes:
    """What a push does. upload: files that are new or differ. replaced: those of them that are there already."""

    upload: tuple[PushedFile, ...]
    replaced: tuple[str, ...]
    removed: tuple[str, ...]
    same: int

    @property
    def nbytes(self) -> int:
        """Bytes of what is uploaded."""
        return sum(file.size for file in self.upload)


def select_files(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Names to push, and names that are in the folder and are not, both sorted.

    Of a folder that tq wrote: what it wrote. Of another: weights, config and what belongs to them. Neither the card nor
    the results are among them, which are made anew.
    """
    there = checkpoint.storage.files()
    record = read_tq_config(checkpoint)
    listed = record.get("files")
    ours = str(record.get("tool")).startswith("tqcli ") and isinstance(listed, list)
    side = [name for name in listed or () if isinstance(name, str)] if ours else sidecars(checkpoint.storage)[0]
    index = _index_of(checkpoint)
    wanted = {*(shard.name for shard in checkpoint.shards), *index, *_DOCUMENTS, *side} - {*_WRITTEN_ANEW}
    return sorted(wanted & there.keys()), sorted(there.keys() - wanted - {*_WRITTEN_ANEW})


def hashed(folder: LocalFolder, names: Iterable[str]) -> list[PushedFile]:
    """The files with their hashes; every byte is read. Raises MachineError where a file changes meanwhile."""
    return [_hashed(folder, name) for name in names]


def made(name: str, content: bytes) -> PushedFile:
    """A file that is in no folder."""
    git = hashlib.sha1(_git_head(len(content)) + content, usedforsecurity=False)
    return PushedFile(name, content, len(content), hashlib.sha256(content).hexdigest(), git.hexdigest())


def changes(files: Iterable[PushedFile], remote: Mapping[str, RemoteFile], repository: str) -> Changes:
    """What it takes to make the remote hold these files.

    Raises InputError where it holds weights that no push of ours wrote, which would be lost or be read with ours.
    """
    wanted = {file.name: file for file in files}
    upload = tuple(file for file in wanted.values() if not is_same(file, remote.get(file.name)))
    replaced = tuple(file.name for file in upload if file.name in remote)
    gone = [name for name in remote if name not in wanted]
    removed = tuple(name for name in gone if SHARD.fullmatch(name) or name in _OUR_SIDE_FILES)
    _check_foreign([name for name in gone if name not in removed], repository)
    _check_ours([*replaced, *removed], remote, repository)
    return Changes(upload, replaced, removed, len(wanted) - len(upload))


def is_same(file: PushedFile, there: RemoteFile | None) -> bool:
    """Whether the remote has this content."""
    return there is not None and there.size == file.size and there.identity in (file.sha256, file.git_sha1)


def _index_of(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.index_bytes is None:
        return []
    ignored = {name for name, _ in checkpoint.ignored_files}
    names = (name for name in checkpoint.storage.files() if name.endswith(_INDEX_SUFFIX))
    return [name for name in names if "/" not in name and name not in ignored]


def _check_foreign(kept: Iterable[str], repository: str) -> None:
    """Weights that stay beside ours: readers would take both for one checkpoint."""
    for name in kept:
        if "/" not in name and name.endswith((".safetensors", _INDEX_SUFFIX)):
            what = f"`{repository}` holds weights that tq did not write"
            raise InputError(what, why=f"`{name}` would be read together with what is pushed", fix=_ANOTHER)


def _check_ours(touched: Iterable[str], remote: Mapping[str, RemoteFile], repository: str) -> None:
    """Shards of a checkpoint that is not ours have the same names as ours."""
    shard = next((name for name in touched if SHARD.fullmatch(name)), None)
    if shard is not None and TQ_CONFIG_NAME not in remote:
        what = f"`{repository}` holds another checkpoint"
        raise InputError(what, why=f"`{shard}` is there, and no `{TQ_CONFIG_NAME}` that tq wrote", fix=_ANOTHER)


def _hashed(folder: LocalFolder, name: str) -> PushedFile:
    size = folder.files()[name]
    whole, git = hashlib.sha256(), hashlib.sha1(_git_head(size), usedforsecurity=False)
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, size)))
    for begin in range(0, size, _CHUNK_BYTES):
        chunk = buffer[: size - begin]
        folder.read_into(name, begin, chunk)
        whole.update(chunk)
        git.update(chunk)
    path = folder.path / name
    # The listing is older than the verification, so this holds of both.
    if not path.is_file() or f"{(now := path.stat()).st_size}-{now.st_mtime_ns}" != folder.fingerprint(name):
        raise MachineError(f"`{name}` changed while it was read", fix="run the command again when nothing writes there")
    return PushedFile(name, path, size, whole.hexdigest(), git.hexdigest())


def _git_head(size: int) -> bytes:
    return b"blob %d\0" % size
