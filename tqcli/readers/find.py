"""What a folder holds, compressed or not: the reader that recognises it, and the weights that the reader finds.

A folder that tq wrote says which layout it has; others are recognised by their names and their config.json. One file of
this folder reads one layout.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from tqcli.checkpoint.reader import Checkpoint
from tqcli.errors import InputError
from tqcli.packed import PackedTensor
from tqcli.readers.record import read_tq_config

PLAIN = "plain"
_NOT_A_READER = ("find", "record", "hlwq_names", "hlwq_said", "hlwq_weight")


class Reader(Protocol):
    """A module of this folder, named as the layout that it reads."""

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether a folder of unknown origin has this layout."""

    def packed_tensors(self, checkpoint: Checkpoint, record: Mapping[str, Any]) -> dict[str, PackedTensor]:
        """Weight's name in the folder -> weight. Raises InputError where the folder contradicts itself."""


@dataclass(frozen=True)
class Contents:
    """layout: its name. packed: the compressed weights, by name. record: tq_config.json, empty where there is none.

    notes: what a person should know of the kind of folder, a line each.
    """

    layout: str
    packed: Mapping[str, PackedTensor]
    record: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def plain_names(self) -> frozenset[str]:
        """Names of the tensors that belong to compressed weights."""
        return frozenset(tensor.name for packed in self.packed.values() for tensor in packed.tensors)


def read(checkpoint: Checkpoint) -> Contents:
    """Recognise a folder and find its compressed weights. Raises InputError where it contradicts itself."""
    record = read_tq_config(checkpoint)
    layout = _layout(checkpoint, record)
    if layout == PLAIN:
        return Contents(PLAIN, {}, record)
    reader = _reader(layout)
    packed = reader.packed_tensors(checkpoint, record)
    # Few readers have something to say.
    notes = getattr(reader, "notes", None)
    return Contents(layout, packed, record, notes(checkpoint, packed, record) if notes else ())


def _layout(checkpoint: Checkpoint, record: Mapping[str, Any]) -> str:
    said = record.get("layout")
    if said is not None:
        if said != PLAIN and said not in known():
            raise InputError(
                f"`{checkpoint.storage.label}` has a layout that this tq does not know", why=str(said)[:80]
            )
        return str(said)
    return next((name for name in known() if _reader(name).recognises(checkpoint)), PLAIN)


def _reader(layout: str) -> Reader:
    module: Any = importlib.import_module(f"tqcli.readers.{layout}")
    reader: Reader = module
    return reader


@cache
def known() -> tuple[str, ...]:
    """The layouts that have a reader, sorted. Modules that only help one have no `recognises`."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name for name in names if name not in _NOT_A_READER and hasattr(_reader(name), "recognises")))
