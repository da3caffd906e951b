"""Where a checkpoint's bytes come from: a folder on this machine, or (`tqcli.hub`) a repository of the Hub.

Files are known by their relative names with forward slashes. Only names that `files()` lists can be read, and
nothing outside the folder is ever listed. What the bytes mean is not known here.
"""

import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

from tqcli.errors import InputError, MachineError

# A checkpoint has at most a few thousand files. A wrong folder (a home directory) has many more.
MAX_FILES = 20_000


class Storage(Protocol):
    """Random access to the files of one checkpoint. Safe to use from several threads."""

    @property
    def label(self) -> str:
        """What the user called it; for messages."""

    @property
    def origin(self) -> str:
        """Repository id, or the folder's name without its path: fit to be published."""

    @property
    def revision(self) -> str | None:
        """The commit, where the storage has one."""

    def files(self) -> Mapping[str, int]:
        """Relative name -> size in bytes, sorted by name; hidden files and folders are left out."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of `name` from `offset`, or InputError or MachineError; never less."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (contiguous bytes) from `offset` of `name`. Raises as `read` does."""

    def fingerprint(self, name: str) -> str:
        """What tells this content from another without reading it all."""


class LocalFolder:
    """A folder on this machine. Files are opened once, at their first read; `close()` closes them.

    A link inside the folder may point to another place in it, and in a snapshot of the Hugging Face cache to
    the cache's own `blobs` folder; a link to anywhere else is an InputError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._label = os.fspath(path)
        self._root = _existing_folder(Path(path))
        self._entries: dict[str, _Entry] | None = None
        self._handles: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        """The path as the user wrote it."""
        return self._label

    @property
    def origin(self) -> str:
        """The folder's own name; for a snapshot in the Hugging Face cache, the repository's."""
        if _blobs_folder(self._root):
            return self._root.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return self._root.name

    @property
    def path(self) -> Path:
        """The folder, with links resolved."""
        return self._root

    @property
    def revision(self) -> str | None:
        """None, but for a snapshot in the Hugging Face cache, which is named after its commit."""
        return self._root.name if _blobs_folder(self._root) else None

    def files(self) -> Mapping[str, int]:
        """Relative name -> size in bytes, sorted by name. InputError for a link that leaves the folder."""
        return MappingProxyType({name: entry.size for name, entry in self._listing().items()})

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of `name` from `offset`."""
        buffer = bytearray(self._check_range(name, offset, length))
        self.read_into(name, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of `name`."""
        target = buffer.cast("B")
        self._check_range(name, offset, len(target))
        handle = self._handle(name)
        filled = 0
        while filled < len(target):
            try:
                count = os.preadv(handle, [target[filled:]], offset + filled)
            except OSError as error:
                raise _cannot_read(name, self.label, error) from error
            if count == 0:
                raise _changed(name, self.label)
            filled += count

    def fingerprint(self, name: str) -> str:
        """Size and time of the last change, in nanoseconds."""
        entry = self._entry(name)
        return f"{entry.size}-{entry.modified_ns}"

    def close(self) -> None:
        """Close every file. A later read opens them again."""
        with self._lock:
            handles = list(self._handles.values())
            self._handles.clear()
        for handle in handles:
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # One that nobody closed gives its files back at the latest here: a process may open a few hundred.
        if hasattr(self, "_handles"):
            self.close()

    def _listing(self) -> dict[str, "_Entry"]:
        with self._lock:
            if self._entries is None:
                self._entries = dict(sorted(_walk(self._root, self.label)))
            return self._entries

    def _entry(self, name: str) -> "_Entry":
        entry = self._listing().get(name)
        if entry is None:
            raise InputError(f"`{self.label}` has no file `{name}`")
        return entry

    def _check_range(self, name: str, offset: int, length: int) -> int:
        size = self._entry(name).size
        if offset < 0 or length < 0 or offset + length > size:
            raise InputError(
                f"`{name}` in `{self.label}` is too short",
                why=f"bytes {offset} to {offset + length} were asked for, it has {size}",
            )
        return length

    def _handle(self, name: str) -> int:
        entry = self._entry(name)
        with self._lock:
            if name not in self._handles:
                self._handles[name] = _open(entry, name, self.label)
            return self._handles[name]


class _Entry:
    """One listed file: the resolved path that was checked, and what it was like then."""

    __slots__ = ("modified_ns", "path", "size")

    def __init__(self, path: Path, status: os.stat_result) -> None:
        self.path = path
        self.size = status.st_size
        self.modified_ns = status.st_mtime_ns


def _existing_folder(path: Path) -> Path:
    try:
        root = path.resolve(strict=True)
        is_folder = root.is_dir()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"no such folder: `{path}`") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"cannot open `{path}`", why=str(error)) from error
    if not is_folder:
        raise InputError(f"`{path}` is a file, not a folder", fix="name the folder that holds the checkpoint")
    return root


def _blobs_folder(root: Path) -> Path | None:
    """<repo>/blobs when `root` is <repo>/snapshots/<commit>, as in the Hugging Face cache."""
    blobs = root.parent.parent / "blobs"
    return blobs if root.parent.name == "snapshots" and blobs.is_dir() else None


def _walk(root: Path, label: str) -> Iterator[tuple[str, _Entry]]:
    def refuse(error: OSError) -> None:
        raise MachineError(f"cannot list `{label}`", why=str(error.strerror or error)) from error

    allowed = [folder for folder in (root, _blobs_folder(root)) if folder is not None]
    count = 0
    for parent, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for name in (*names, *_linked_folders(parent, folders)):
            if name.startswith("."):
                continue
            count += 1
            if count > MAX_FILES:
                raise InputError(f"`{label}` holds more than {MAX_FILES} files", why="a checkpoint has far fewer")
            path = Path(parent, name)
            yield path.relative_to(root).as_posix(), _examine(path, allowed, label)


def _linked_folders(parent: str, folders: list[str]) -> list[str]:
    """Links to folders: a walk does not enter them, so they are examined (and refused) like files."""
    return [folder for folder in folders if Path(parent, folder).is_symlink()]


def _examine(path: Path, allowed: list[Path], label: str) -> _Entry:
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"`{path.name}` in `{label}` is a link to a file that is not there",
            fix="finish the download, or remove the link",
        ) from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot look at `{path.name}` in `{label}`", why=str(error)) from error
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise InputError(
            f"`{path.name}` in `{label}` is a link that leaves the folder",
            fix="put the file itself, or a hard link to it, into the folder",
        )
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"`{path.name}` in `{label}` is not a plain file")
    return _Entry(real, status)


def _open(entry: _Entry, name: str, label: str) -> int:
    try:
        handle = os.open(entry.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise _cannot_read(name, label, error) from error
    status = os.fstat(handle)
    if (status.st_size, status.st_mtime_ns) != (entry.size, entry.modified_ns):
        os.close(handle)
        raise _changed(name, label)
    return handle


def _cannot_read(name: str, label: str, error: OSError) -> MachineError:
    return MachineError(f"cannot read `{name}` in `{label}`", why=str(error.strerror or error))


def _changed(name: str, label: str) -> MachineError:
    return MachineError(f"`{name}` in `{label}` changed while it was being read", fix="run the command again")
