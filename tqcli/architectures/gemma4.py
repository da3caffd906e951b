"""Gemma 4: dense or a mixture of experts beside a dense network, with vision, some with audio.

Full-attention layers may have no v_proj: the values are made from the keys. Small models have a second
embedding for each layer, whose projections are left as they are.
"""

from tqcli.architectures.base import Architecture
from tqcli.architectures.rules import LLAMA_LIKE, TOWERS, experts, in_layer, in_text

ARCHITECTURE = Architecture(
    (
        *LLAMA_LIKE,
        in_layer(r"router\.(?:proj\.weight|scale|per_expert_scale)", "router"),
        *experts(""),
        in_layer("layer_scalar", "norm"),
        in_text(r"embed_tokens_per_layer\.weight", "embed"),
        in_text(r"per_layer_projection_norm\.weight", "norm"),
        *TOWERS,
    ),
    stacked_experts=True,
)
