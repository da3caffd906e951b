"""Open a checkpoint: config.json and every header, checked against each other. No tensor data is read.

Any folder of safetensors will do, one of ours included. Nothing here knows architectures or formats.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tqcli.checkpoint.header import PREFIX_BYTES, Header, TensorInfo, header_bytes, parse_header
from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.shards import Selection, read_bounded, select_shards
from tqcli.checkpoint.storage import Storage
from tqcli.errors import InputError

CONFIG_FILE = "config.json"

# Headers are two small reads each; over a network their latency adds up, so some are read at the same time.
_HEADER_READERS = 8
_REFETCH = "fetch the index and its files again, from the same revision"


@dataclass(frozen=True)
class ShardInfo:
    """One safetensors file: size in bytes, SHA-256 of its header, its tensors in the order of their bytes."""

    name: str
    size: int
    header_sha256: str
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a folder or repository holds, as its config and headers say.

    tensors: by name, ordered by file and then by offset.
    metadata: the `__metadata__` entries on which all shards that have them agree; each shard keeps its own.
    ignored_files: (name, reason) of safetensors files and indexes that were passed over.
    """

    storage: Storage
    config: Mapping[str, Any]
    config_bytes: bytes
    tensors: Mapping[str, TensorInfo]
    shards: tuple[ShardInfo, ...]
    metadata: Mapping[str, str]
    index_bytes: bytes | None
    ignored_files: tuple[tuple[str, str], ...]

    def fingerprint(self) -> str:
        """SHA-256 over what identifies the weights and the config here and now: changes when a file is touched."""
        return self._digest([self.storage.fingerprint(shard.name) for shard in self.shards])

    def content_fingerprint(self) -> str:
        """SHA-256 over config, file sizes and headers alone: the same for every copy of a checkpoint."""
        return self._digest([])

    def _digest(self, more: list[str]) -> str:
        shards = [[shard.name, shard.size, shard.header_sha256] for shard in self.shards]
        config = hashlib.sha256(self.config_bytes).hexdigest()
        text = json.dumps({"config": config, "shards": shards, "more": more}, separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def open_checkpoint(storage: Storage) -> Checkpoint:
    """Read and check config.json, the index and all headers of `storage`.

    Raises InputError for anything missing, damaged or contradictory, MachineError when reading fails.
    """
    config_bytes, config = _config(storage)
    selection = select_shards(storage)
    with ThreadPoolExecutor(_HEADER_READERS) as pool:
        shards = tuple(pool.map(lambda name: _shard(storage, name), selection.shards))
    tensors = _merge_tensors(shards)
    _check_index(selection, tensors)
    return Checkpoint(
        storage=storage,
        config=config,
        config_bytes=config_bytes,
        tensors=tensors,
        shards=shards,
        metadata=_agreed(shard.metadata for shard in shards),
        index_bytes=selection.index_bytes,
        ignored_files=selection.ignored,
    )


def read_header(storage: Storage, name: str) -> Header:
    """The header of one safetensors file, by two small reads."""
    size = storage.files()[name]
    prefix = storage.read(name, 0, min(PREFIX_BYTES, size))
    nbytes = header_bytes(prefix, name, size)
    return parse_header(prefix + storage.read(name, PREFIX_BYTES, nbytes - PREFIX_BYTES), name, size)


def _config(storage: Storage) -> tuple[bytes, dict[str, Any]]:
    if CONFIG_FILE not in storage.files():
        raise InputError(
            f"`{storage.label}` has no `{CONFIG_FILE}`",
            fix="name a folder or a repository that holds a Hugging Face checkpoint",
        )
    raw = read_bounded(storage, CONFIG_FILE)
    return raw, parse_object(raw, CONFIG_FILE)


def _shard(storage: Storage, name: str) -> ShardInfo:
    header = read_header(storage, name)
    return ShardInfo(name, storage.files()[name], header.sha256, header.tensors, header.metadata)


def _merge_tensors(shards: Iterable[ShardInfo]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for tensor in shard.tensors:
            other = tensors.setdefault(tensor.name, tensor)
            if other is not tensor:
                raise InputError(
                    f"tensor `{tensor.name}` is there twice", why=f"in `{other.file}` and in `{tensor.file}`"
                )
    return tensors


def _check_index(selection: Selection, tensors: Mapping[str, TensorInfo]) -> None:
    if selection.weight_map is None:
        return
    for name, file in selection.weight_map.items():
        if name not in tensors:
            raise InputError(f"tensor `{name}` is not in `{file}`", why="the index says it is", fix=_REFETCH)
        if tensors[name].file != file:
            raise InputError(
                f"tensor `{name}` is in `{tensors[name].file}`", why=f"the index says `{file}`", fix=_REFETCH
            )
    for tensor in tensors.values():
        if tensor.name not in selection.weight_map:
            raise InputError(f"tensor `{tensor.name}` in `{tensor.file}` is not in the index", fix=_REFETCH)


def _agreed(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    values: dict[str, set[str]] = {}
    for part in parts:
        for key, value in part.items():
            values.setdefault(key, set()).add(value)
    return {key: next(iter(found)) for key, found in values.items() if len(found) == 1}
