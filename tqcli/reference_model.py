"""The names and shapes of Gemma 4 26B-A4B, by which recipes are compared: no weights, nothing to download.

The list ships with the recipes. Left out: its vision tower's config and whatever else only loading needs.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint, ShardInfo
from tqcli.errors import InputError
from tqcli.recipe import recipes_folder

NAME = "Gemma 4 26B"
_FILE = "gemma-4-26b.json"
_SHARD = "model.safetensors"


def reference_model() -> Checkpoint:
    """A checkpoint that can be planned with. Reading from it raises InputError."""
    described = json.loads((recipes_folder() / _FILE).read_text(encoding="utf-8"))
    tensors = {tensor.name: tensor for tensor in _tensors(described["tensors"])}
    last = max(tensor.offset + tensor.nbytes for tensor in tensors.values())
    shard = ShardInfo(_SHARD, last, "", tuple(tensors.values()), {})
    return Checkpoint(_Nothing(described["model"]), described["config"], b"", tensors, (shard,), {}, None, ())


def _tensors(described: list[Mapping[str, Any]]) -> Iterator[TensorInfo]:
    offset = 0
    for entry in described:
        shape = tuple(entry["shape"])
        nbytes = 2 * prod(shape)
        for layer in entry.get("layers", [""]):
            yield TensorInfo(entry["name"].replace("*", str(layer)), "BF16", shape, _SHARD, offset, nbytes)
            offset += nbytes


class _Nothing:
    """A storage without files."""

    def __init__(self, label: str) -> None:
        self.label = self.origin = label
        self.revision = None

    def files(self) -> Mapping[str, int]:
        return {}

    def read(self, name: str, offset: int, length: int) -> bytes:
        raise InputError(f"`{self.label}` is known by its shapes alone", why=f"{length} bytes of `{name}` at {offset}")

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.read(name, offset, buffer.nbytes)

    def fingerprint(self, name: str) -> str:
        return name
