"""Phi 3 and 4: q, k, v are one matrix, and so are gate and up."""

from tqcli.architectures.base import Architecture
from tqcli.architectures.rules import LLAMA_LIKE, in_layer

ARCHITECTURE = Architecture(
    (
        in_layer(r"self_attn\.qkv_proj\.weight", "q", "k", "v"),
        in_layer(r"mlp\.gate_up_proj\.weight", "gate", "up"),
        *LLAMA_LIKE,
    )
)
