"""What is to be served, from its headers and small files alone: whole, finished, and stored in which way."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqcli.checkpoint.reader import Checkpoint
from tqcli.errors import InputError
from tqcli.hub.base_model import open_model
from tqcli.hub.fetch import open_source
from tqcli.packed import PackedTensor
from tqcli.readers.find import PLAIN, read

_PACKED = "native"
# Weights that stay as they lie on disk, mapped; those of other layouts are decoded while they are loaded.
_MAPPED = (_PACKED, PLAIN)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True)
class Subject:
    """One checkpoint. source: as the user named it. layout: as in `tqcli.readers`.

    decoded_bytes: what its weights take in memory beyond the mapped files, in the embedded engine. expert_bytes: of
    its routed experts, as they are stored.
    """

    source: str
    revision: str | None
    layout: str
    config: Mapping[str, Any]
    shards: int
    nbytes: int
    decoded_bytes: int
    expert_bytes: int = 0

    @property
    def name(self) -> str:
        """What clients call it unless told otherwise: a Hub id, or the folder's name."""
        path = Path(self.source)
        return path.resolve().name if path.exists() else self.source

    @property
    def model_type(self) -> str:
        """As in config.json."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of config.json that is about the language model."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, Mapping) else self.config

    @property
    def is_compressed(self) -> bool:
        """Whether anything in it is."""
        return self.layout != PLAIN

    @property
    def is_packed(self) -> bool:
        """Whether it is in the formats whose weights stay packed in memory."""
        return self.layout == _PACKED


def open_subject(source: str, revision: str | None = None) -> Subject:
    """Raises InputError for what cannot be served by any engine, MachineError where the network stands in the way."""
    storage = open_source(source, revision)
    folder = Path(source)
    if folder.is_dir():
        # Only now: it imports transformers, which a name that is wrong need not wait for.
        from tqcli.runtime.load import check_folder

        check_folder(folder)
    elif not any(name in storage.files() for name in _TOKENIZERS):
        raise InputError(f"`{source}` holds no tokenizer", fix="name the model that it was made from")
    checkpoint = open_model(storage)
    contents = read(checkpoint)
    return Subject(
        source=source,
        revision=revision,
        layout=contents.layout,
        config=checkpoint.config,
        shards=len(checkpoint.shards),
        nbytes=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        decoded_bytes=0 if contents.layout in _MAPPED else _decoded(checkpoint, contents.plain_names, contents.packed),
        expert_bytes=sum(one.nbytes for name, one in checkpoint.tensors.items() if ".experts." in name),
    )


def _decoded(checkpoint: Checkpoint, packed_names: frozenset[str], packed: Mapping[str, PackedTensor]) -> int:
    """Bytes in 16 bits a weight, which is what nearly every checkpoint computes in."""
    plain = sum(tensor.nbytes for name, tensor in checkpoint.tensors.items() if name not in packed_names)
    return plain + sum(2 * one.rows * one.columns for one in packed.values())
