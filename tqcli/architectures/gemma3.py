"""Gemma 3 with vision."""

from tqcli.architectures.base import Architecture
from tqcli.architectures.rules import LLAMA_LIKE, TOWERS

ARCHITECTURE = Architecture((*LLAMA_LIKE, *TOWERS))
