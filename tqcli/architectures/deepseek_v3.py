"""DeepSeek V3 and R1: low-rank attention, routed and shared experts, layers for further tokens.

`kv_a_proj_with_mqa` makes the compressed keys and values and the rotary part of the keys: it counts as k.
"""

from tqcli.architectures.base import Architecture
from tqcli.architectures.rules import (
    LLAMA_LIKE,
    NEXT_TOKEN_LAYERS,
    ROUTER,
    SHARED_EXPERTS,
    experts,
    in_layer,
)

ARCHITECTURE = Architecture(
    (
        in_layer(r"self_attn\.q_[ab]_proj\.weight", "q"),
        in_layer(r"self_attn\.kv_a_proj_with_mqa\.weight", "k"),
        in_layer(r"self_attn\.kv_b_proj\.weight", "v"),
        *LLAMA_LIKE,
        *ROUTER,
        *experts(r"mlp\."),
        *SHARED_EXPERTS,
        *NEXT_TOKEN_LAYERS,
    )
)
