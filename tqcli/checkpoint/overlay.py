"""Two storages as one checkpoint: a folder that holds only some tensors of a model, and the model that has the rest.

The folder's files keep their names; of the base, the weight files that are used come under a prefix that no file of
the folder begins with, and config.json and side files where the folder has none. Left out: which tensors are missing,
which the folder's reader knows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint, ShardInfo
from tqcli.checkpoint.sidecars import CONFIG_NAME, sidecars
from tqcli.checkpoint.storage import Storage

_PREFIX = "base-"


class Overlay:
    """A Storage over two. Safe to use from several threads, as both are.

    base_tensors: everything that the base holds, whether it is taken or not. taken: how many of them are.
    """

    def __init__(
        self, folder: Storage, base: Storage, base_tensors: Mapping[str, TensorInfo], shards: Iterable[str] = ()
    ) -> None:
        self.folder = folder
        self.base = base
        self.base_tensors = base_tensors
        self.taken = 0
        self.prefix = _free_prefix(folder)
        ours, there = folder.files(), base.files()
        small = [name for name in (CONFIG_NAME, *sidecars(base)[0]) if name in there and name not in ours]
        self._shards = tuple(shards)
        self._homes = {
            **{name: (base, name) for name in small},
            **{self.prefix + name: (base, name) for name in self._shards},
            **{name: (folder, name) for name in ours},
        }

    @property
    def label(self) -> str:
        """The folder's."""
        return self.folder.label

    @property
    def origin(self) -> str:
        """The folder's."""
        return self.folder.origin

    @property
    def revision(self) -> str | None:
        """The folder's."""
        return self.folder.revision

    def files(self) -> Mapping[str, int]:
        """The folder's files and what is taken of the base, sorted by name."""
        return {name: home.files()[inner] for name, (home, inner) in sorted(self._homes.items())}

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of `name` from `offset`, from wherever it lies."""
        home, inner = self._home(name)
        return home.read(inner, offset, length)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of `name`."""
        home, inner = self._home(name)
        home.read_into(inner, offset, buffer)

    def fingerprint(self, name: str) -> str:
        """As the storage where it lies says it."""
        home, inner = self._home(name)
        return home.fingerprint(inner)

    def over(self, folder: Storage, base: Storage) -> "Overlay":
        """The same over copies of the two."""
        copy = Overlay(folder, base, self.base_tensors, self._shards)
        copy.taken = self.taken
        return copy

    def _home(self, name: str) -> tuple[Storage, str]:
        # A name that is not there is for the folder to refuse.
        return self._homes.get(name, (self.folder, name))


def join(folder: Checkpoint, base: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """The folder's checkpoint with the tensors `names` of the base.

    folder: opened over an Overlay, or not. Raises KeyError where the base has no such tensor.
    """
    storage = folder.storage.folder if isinstance(folder.storage, Overlay) else folder.storage
    wanted = {name: base.tensors[name] for name in names}
    files = {tensor.file for tensor in wanted.values()}
    used = [shard for shard in base.shards if shard.name in files]
    overlay = Overlay(storage, base.storage, base.tensors, [shard.name for shard in used])
    overlay.taken = len(wanted)
    # Ordered as the base has them, so that they are read from the first byte to the last.
    taken = {
        name: replace(tensor, file=overlay.prefix + tensor.file)
        for name, tensor in base.tensors.items()
        if name in wanted
    }
    return replace(
        folder,
        storage=overlay,
        tensors={**folder.tensors, **taken},
        shards=(*folder.shards, *(_renamed(shard, taken, overlay.prefix) for shard in used)),
    )


def _renamed(shard: ShardInfo, taken: Mapping[str, TensorInfo], prefix: str) -> ShardInfo:
    tensors = tuple(taken[tensor.name] for tensor in shard.tensors if tensor.name in taken)
    return replace(shard, name=prefix + shard.name, tensors=tensors)


def _free_prefix(folder: Storage) -> str:
    prefix = _PREFIX
    while any(name.startswith(prefix) for name in folder.files()):
        prefix += "-"
    return prefix
