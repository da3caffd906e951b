"""Qwen 3, mixture of experts; some layers may be dense."""

from tqcli.architectures.base import Architecture
from tqcli.architectures.rules import LLAMA_LIKE, ROUTER, experts

ARCHITECTURE = Architecture((*LLAMA_LIKE, *ROUTER, *experts(r"mlp\.")))
