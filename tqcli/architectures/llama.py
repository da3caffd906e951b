"""Llama 2 and 3: the layout that most dense decoders follow."""

from tqcli.architectures.base import Architecture
from tqcli.architectures.rules import LLAMA_LIKE

ARCHITECTURE = Architecture(LLAMA_LIKE)
