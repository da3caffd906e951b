"""The weights of any folder under their original names: what every conversion and comparison begins with."""

from tqcli.architectures.base import Architecture
from tqcli.checkpoint.reader import Checkpoint
from tqcli.layouts.base import find
from tqcli.readers.find import read
from tqcli.weights import Weight


def original_weights(source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
    """Plain weights as they are; compressed ones as what they decode to. In the order of the files.

    Raises InputError where a compressed folder contradicts itself or does not tell what its weights were.
    """
    contents = read(source)
    return find(contents.layout).restore(contents, source, architecture)
