"""GLM 4.5 and 4.6: dense first layers, then routed and shared experts, then layers for further tokens."""

from tqcli.architectures.base import Architecture
from tqcli.architectures.rules import LLAMA_LIKE, NEXT_TOKEN_LAYERS, ROUTER, SHARED_EXPERTS, experts

ARCHITECTURE = Architecture((*LLAMA_LIKE, *ROUTER, *experts(r"mlp\."), *SHARED_EXPERTS, *NEXT_TOKEN_LAYERS))
