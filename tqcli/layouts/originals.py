"""The weights of any folder under their original names: what every conversion and comparison begins with."""

from tqcli.architectures.base import Architecture
from tqcli.checkpoint.reader import Checkpoint
from tqcli.errors import InputError
from tqcli.formats.native import TQ_CONFIG_NAME
from tqcli.layouts.base import find
from tqcli.readers.find import Contents, read
from tqcli.readers.record import recorded_sums
from tqcli.weights import Weight


def original_weights(source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
    """Plain weights as they are; compressed ones as what they decode to. In the order of the files.

    Raises InputError where a compressed folder contradicts itself or does not tell what its weights were.
    """
    return restored(read(source), source, architecture)


def restored(contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
    """The same of a folder that was read already."""
    weights = find(contents.layout).restore(contents, source, architecture)
    # Last, because a layout that misses a tensor says better what it is.
    _check_record(contents, source)
    return weights


def _check_record(contents: Contents, source: Checkpoint) -> None:
    """A folder that tq wrote lists its tensors: one that was renamed or lost would else be another model's."""
    listed = recorded_sums(contents.record).keys()
    different = sorted(listed ^ source.tensors.keys()) if listed else []
    if different:
        what = f"`{different[0]}` is {'missing' if different[0] in listed else 'not listed'}"
        raise InputError(what, why=f"`{TQ_CONFIG_NAME}` of `{source.storage.label}` lists every tensor")
