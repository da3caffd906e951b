"""What keys and values each layer of a model has, from its configuration alone.

Reads the configurations of transformers 5.5 and later, one for all layers or one for each (`per_layer_config`).
Left out: layers with a state of another kind; they are told by name, without a size.
"""

from dataclasses import dataclass
from typing import Any

_SLIDING = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_EMPTY = ("moe", "mlp")


@dataclass(frozen=True)
class LayerShape:
    """One layer. kind: `full`, `sliding`, `none` (it stores nothing), or the name of a type that is not known here.

    heads: of keys and of values. key_size, value_size: numbers of a head vector. window: of a sliding layer, in tokens.
    """

    kind: str
    heads: int = 0
    key_size: int = 0
    value_size: int = 0
    window: int = 0


def layer_shapes(config: Any) -> list[LayerShape]:
    """The layers of a transformers configuration's decoder, in order."""
    text = config.get_text_config(decoder=True)
    each = _layer_configs(text)
    types = getattr(text, "layer_types", None) or [_type_of(one) for one in each]
    shared = getattr(text, "num_kv_shared_layers", None) or 0
    owners = len(types) - shared
    return [
        _shape(kind, one, text) if number < owners else LayerShape("none")
        for number, (kind, one) in enumerate(zip(types, each, strict=True))
    ]


def _layer_configs(text: Any) -> list[Any]:
    each = getattr(text, "per_layer_config", None)
    if each is None:
        return [text] * text.num_hidden_layers
    return list(each.values()) if isinstance(each, dict) else list(each)


def _type_of(config: Any) -> str:
    for kind, name in _SLIDING.items():
        if getattr(config, name, None) is not None:
            return kind
    return "full_attention"


def _shape(kind: str, config: Any, text: Any) -> LayerShape:
    if kind in _EMPTY:
        return LayerShape("none")
    is_sliding = kind in _SLIDING
    if (not is_sliding and kind != "full_attention") or getattr(config, "kv_lora_rank", None):
        return LayerShape(kind if kind != "full_attention" else "latent_attention")
    heads, size = _heads(config), _head_size(config)
    if config is text and not is_sliding:
        # Before configurations told layers apart, Gemma 4 had names of its own for its full-attention layers.
        size = getattr(text, "global_head_dim", None) or size
        heads = (getattr(text, "attention_k_eq_v", False) and text.num_global_key_value_heads) or heads
    window = getattr(config, _SLIDING[kind]) if is_sliding else 0
    return LayerShape("sliding" if is_sliding else "full", heads, size, size, window)


def _heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
