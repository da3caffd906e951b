"""Writing safetensors shards whose every byte's place is known beforehand.

The layout is made from names, dtypes and shapes; data then arrives in any order and goes to its place. A shard is
written under a temporary name, flushed to the disk and renamed, so a file with a final name is a whole file.
Left out: what the tensors mean, and in which order shards are made.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqcli.checkpoint.header import DTYPE_BITS
from tqcli.checkpoint.stored import Stored
from tqcli.errors import InputError, MachineError

PARTIAL_SUFFIX = ".partial"
# What a new file gets everywhere: the user's umask takes from it.
_FILE_MODE = 0o666
_MAX_SHARDS = 99_999


@dataclass(frozen=True)
class ShardLayout:
    """One output file: its name and its tensors in the order in which they lie.

    Wide dtypes come first, so that every tensor starts at a multiple of its item size, as zero-copy readers need.
    """

    name: str
    tensors: tuple[Stored, ...]
    metadata: tuple[tuple[str, str], ...] = (("format", "pt"),)

    @cached_property
    def header(self) -> bytes:
        """The safetensors header with its length prefix, padded to 8 bytes."""
        fields: dict[str, object] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        for tensor in self.tensors:
            begin = self.offsets[tensor.name]
            place = [begin, begin + tensor.nbytes]
            fields[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place}
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each tensor's data begins, counted from the end of the header."""
        places, position = {}, 0
        for tensor in self.tensors:
            places[tensor.name] = position
            position += tensor.nbytes
        return places

    @property
    def weight_bytes(self) -> int:
        """Bytes of data."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def file_bytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.weight_bytes


def lay_out_shards(units: Sequence[Sequence[Stored]], shard_bytes: int) -> tuple[ShardLayout, ...]:
    """Divide units, each of which must stay in one file, into shards of at most `shard_bytes` of data.

    A unit larger than that gets a shard of its own. Raises InputError where there would be too many shards to number.
    """
    groups: list[list[Stored]] = [[]]
    used = 0
    for unit in units:
        size = sum(tensor.nbytes for tensor in unit)
        if groups[-1] and used + size > shard_bytes:
            groups.append([])
            used = 0
        groups[-1].extend(unit)
        used += size
    count = len(groups)
    if count > _MAX_SHARDS:
        raise InputError(f"{count} shards are too many", why=f"at most {_MAX_SHARDS}", fix="a larger shard size")
    return tuple(shard(shard_name(i, count), group) for i, group in enumerate(groups, 1))


def shard(name: str, tensors: Sequence[Stored]) -> ShardLayout:
    """One file of these tensors, the wide dtypes first."""
    return ShardLayout(name, tuple(sorted(tensors, key=lambda tensor: -DTYPE_BITS[tensor.dtype])))


def shard_name(number: int, count: int) -> str:
    """`model.safetensors`, or `model-00002-of-00007.safetensors`."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


class ShardWriter:
    """Writes one shard; each tensor's pieces must come in order. Use as a context manager.

    Tensors whose content is known are written at once.

    Leaving without `finish` removes the temporary file. Raises MachineError when the disk is full.
    """

    def __init__(self, folder: Path, layout: ShardLayout) -> None:
        self._layout = layout
        self._final = folder / layout.name
        self._temporary = folder / (layout.name + PARTIAL_SUFFIX)
        self._written = dict.fromkeys(layout.offsets, 0)
        # Only tensors that are begun and not complete have a state: a shard may have tens of thousands.
        self._hashes: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._nbytes = {tensor.name: tensor.nbytes for tensor in layout.tensors}
        with disk_errors(self._final):
            self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
        try:
            with disk_errors(self._final):
                self._reserve()
                self._write(0, layout.header)
                for tensor in layout.tensors:
                    if tensor.content is not None:
                        self.append(tensor.name, tensor.content)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file < 0:
            return
        os.close(self._file)
        self._file = -1
        with suppress(OSError):
            self._temporary.unlink()

    def append(self, name: str, piece: bytes | memoryview) -> None:
        """Write the next bytes of a tensor."""
        view = memoryview(piece).cast("B")
        begin = len(self._layout.header) + self._layout.offsets[name] + self._written[name]
        with disk_errors(self._final):
            self._write(begin, view)
        state = self._hashes.setdefault(name, hashlib.sha256())
        state.update(view)
        self._written[name] += view.nbytes
        if self._written[name] == self._nbytes[name]:
            self._digests[name] = self._hashes.pop(name).hexdigest()

    def finish(self) -> dict[str, str]:
        """Flush, rename, and return each tensor's SHA-256. Raises RuntimeError if bytes are missing."""
        for tensor in self._layout.tensors:
            if self._written[tensor.name] != tensor.nbytes:
                raise RuntimeError(f"{tensor.name}: {self._written[tensor.name]} of {tensor.nbytes} bytes written")
        with disk_errors(self._final):
            os.fsync(self._file)
            self._temporary.replace(self._final)
            sync_folder(self._final.parent)
            os.close(self._file)
            self._file = -1
        empty = hashlib.sha256().hexdigest()
        return {name: self._digests.get(name, empty) for name in self._nbytes}

    def _reserve(self) -> None:
        """Take the space now: a full disk is better found before the work than after it."""
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file, 0, self._layout.file_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def _write(self, begin: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view.nbytes:
            count = os.pwrite(self._file, view, begin)
            view, begin = view[count:], begin + count


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing `path` into a MachineError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free some space and run the same command again: finished shards are kept"
            raise MachineError(f"the disk is full: `{path}`", why=str(error), fix=fix) from error
        raise MachineError(f"`{path}` cannot be written", why=str(error)) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that a reader sees the old one, or the whole new one."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    with disk_errors(path):
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
