"""Mixtral: experts under `block_sparse_moe`, their matrices called w1 (gate), w3 (up) and w2 (down)."""

from tqcli.architectures.base import Architecture
from tqcli.architectures.rules import LLAMA_LIKE, ROUTER, experts, in_layer

ARCHITECTURE = Architecture(
    (
        *LLAMA_LIKE,
        *ROUTER,
        in_layer(r"block_sparse_moe\.gate\.weight", "router"),
        *experts(r"(?:block_sparse_moe|mlp)\.", gate="w1", up="w3", down="w2"),
    )
)
