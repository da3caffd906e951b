"""Small checkpoints of every model type that mlx_lm runs, all widths multiples of 64, and MLX's format by NumPy alone.

`by_hand` gives names and shapes as on the Hub, without transformers; `random_model` a model that runs.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from support import checkpoints

VOCABULARY = 320
LAYERS = 6
Shapes = dict[str, tuple[int, ...]]


def decode(words: Any, scales: Any, biases: Any, bits: int, group_size: int = 64) -> Any:
    """uint32 (rows, words), float32 scales and biases (rows, groups) -> float32 (rows, columns)."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    codes = stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))
    groups = codes.reshape(len(words), -1, group_size).astype(np.float32)
    return (groups * scales[..., None] + biases[..., None]).reshape(len(words), -1)


def decode_stored(tensors: dict[str, checkpoints.Tensor], module: str, group_size: int = 64) -> Any:
    """A module's weight in a BF16 folder, its width told by the sizes alone -> float32 (rows, columns)."""
    words, scales, biases = (
        np.frombuffer(data, np.uint32 if dtype == "U32" else np.uint16).reshape(-1, shape[-1])
        for dtype, shape, data in (tensors[module + suffix] for suffix in (".weight", ".scales", ".biases"))
    )
    bits = words.shape[1] * 32 // (scales.shape[1] * group_size)
    return decode(words, widen(scales), widen(biases), bits, group_size)


def widen(values: Any) -> Any:
    """BF16 as uint16 -> float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def _attention(prefix: str, *, norms: bool = False) -> Shapes:
    shapes: Shapes = {f"{prefix}self_attn.{one}_proj.weight": (128, 128) for one in "qo"}
    shapes |= {f"{prefix}self_attn.{one}_proj.weight": (64, 128) for one in "kv"}
    return shapes | ({f"{prefix}self_attn.{one}_norm.weight": (32,) for one in "qk"} if norms else {})


def _swiglu(prefix: str, width: int = 192) -> Shapes:
    shapes: Shapes = {f"{prefix}.{one}_proj.weight": (width, 128) for one in ("gate", "up")}
    return shapes | {f"{prefix}.down_proj.weight": (128, width)}


def _dense(layers: int, *, prefix: str = "model.", norms: bool = False) -> Shapes:
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (64, 128), f"{prefix}norm.weight": (128,)}
    for layer in range(layers):
        inside = f"{prefix}layers.{layer}."
        shapes |= {inside + "input_layernorm.weight": (128,)}
        shapes |= _attention(inside, norms=norms) | _swiglu(inside + "mlp")
    return shapes


def _experts(layers: int, module: str, names: tuple[str, str, str], *, first: int = 0, count: int = 3) -> Shapes:
    shapes: Shapes = {}
    for layer in range(first, layers):
        for expert in range(count):
            inside = f"model.layers.{layer}.{module}.experts.{expert}."
            shapes |= {f"{inside}{one}.weight": (64, 128) for one in names[:2]}
            shapes |= {f"{inside}{names[2]}.weight": (128, 64)}
    return shapes


def _without(shapes: Shapes, part: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if part not in name}


def _llama(layers: int) -> Shapes:
    return _dense(layers) | {"lm_head.weight": (64, 128)}


def _gemma4_text(layers: int, prefix: str = "model.") -> Shapes:
    shapes = _dense(layers, prefix=prefix, norms=True)
    for layer in range(layers):
        inside = f"{prefix}layers.{layer}."
        shapes |= {inside + "layer_scalar": (1,), inside + "router.proj.weight": (4, 128)}
        shapes |= {inside + "router.scale": (128,), inside + "router.per_expert_scale": (4,)}
        shapes |= {inside + "experts.gate_up_proj": (4, 128, 128), inside + "experts.down_proj": (4, 128, 64)}
    return shapes


def _gemma4(layers: int) -> Shapes:
    towers: Shapes = {
        "model.vision_tower.patch_embedder.input_proj.weight": (64, 48),
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight": (64, 64),
        "model.embed_vision.embedding_projection.weight": (128, 64),
        "model.audio_tower.layers.0.norm_out.weight": (64,),
        "model.embed_audio.embedding_projection.weight": (128, 64),
    }
    return _gemma4_text(layers, "model.language_model.") | towers


def _gemma3(layers: int) -> Shapes:
    towers: Shapes = {
        "multi_modal_projector.mm_input_projection_weight": (64, 128),
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (64, 64),
    }
    return _dense(layers, prefix="language_model.model.", norms=True) | towers


def _glm4_moe(layers: int) -> Shapes:
    """The first layer is dense; one layer more than the model has predicts further tokens."""
    every = layers + 1
    shapes = _without(_llama(every), ".mlp.") | _swiglu("model.layers.0.mlp")
    shapes |= _experts(every, "mlp", ("gate_proj", "up_proj", "down_proj"), first=1)
    for layer in range(1, every):
        inside = f"model.layers.{layer}.mlp."
        shapes |= {inside + "gate.weight": (3, 128), inside + "gate.e_score_correction_bias": (3,)}
        shapes |= _swiglu(inside + "shared_experts", 64)
    last = f"model.layers.{layers}."
    shapes |= {last + "eh_proj.weight": (128, 256), last + "enorm.weight": (128,), last + "hnorm.weight": (128,)}
    return shapes | {last + "shared_head.head.weight": (64, 128), last + "shared_head.norm.weight": (128,)}


def _mixtral(layers: int) -> Shapes:
    routers: Shapes = {f"model.layers.{layer}.block_sparse_moe.gate.weight": (3, 128) for layer in range(layers)}
    experts = _experts(layers, "block_sparse_moe", ("w1", "w3", "w2"))
    return _without(_llama(layers), ".mlp.") | routers | experts


def _qwen3_moe(layers: int) -> Shapes:
    routers: Shapes = {f"model.layers.{layer}.mlp.gate.weight": (3, 128) for layer in range(layers)}
    experts = _experts(layers, "mlp", ("gate_proj", "up_proj", "down_proj"))
    return _without(_llama(layers), ".mlp.") | routers | experts


def _phi3(layers: int) -> Shapes:
    shapes = _without(_without(_llama(layers), ".mlp."), "self_attn")
    for layer in range(layers):
        inside = f"model.layers.{layer}."
        shapes |= {inside + "self_attn.qkv_proj.weight": (256, 128), inside + "self_attn.o_proj.weight": (128, 128)}
        shapes |= {inside + "mlp.gate_up_proj.weight": (384, 128), inside + "mlp.down_proj.weight": (128, 192)}
    return shapes


SHAPES: dict[str, Callable[[int], Shapes]] = {
    "gemma3": _gemma3,
    "gemma3_text": lambda layers: _dense(layers, norms=True),
    "gemma4": _gemma4,
    "gemma4_text": _gemma4_text,
    "glm4_moe": _glm4_moe,
    "llama": _llama,
    "mistral": _llama,
    "mixtral": _mixtral,
    "phi3": _phi3,
    "qwen2": lambda layers: _llama(layers) | {f"model.layers.{n}.self_attn.q_proj.bias": (128,) for n in range(layers)},
    "qwen3": lambda layers: _dense(layers, norms=True) | {"lm_head.weight": (64, 128)},
    "qwen3_moe": _qwen3_moe,
}
_TEXT_CONFIG = ("gemma3", "gemma4")


def config_of(model_type: str, layers: int = 2, **more: Any) -> dict[str, Any]:
    """The least that config.json must say."""
    counts = {"num_hidden_layers": layers, **({"num_experts": 4} if model_type.startswith("gemma4") else {}), **more}
    if model_type in _TEXT_CONFIG:
        return {"model_type": model_type, "text_config": {"model_type": model_type + "_text", **counts}}
    return {"model_type": model_type, **counts}


def by_hand(folder: Path, model_type: str, *, layers: int = 2, **config: Any) -> Path:
    """Names and shapes as on the Hub, random values in BF16."""
    shapes = SHAPES[model_type](layers)
    tensors = {name: checkpoints.tensor(shape, "BF16", seed) for seed, (name, shape) in enumerate(shapes.items())}
    return checkpoints.write_checkpoint(folder, config_of(model_type, layers, **config), tensors)


_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_GEMMA4_TEXT = _COMMON | {
    "vocab_size_per_layer_input": VOCABULARY, "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "sliding_window": 16, "global_head_dim": 64, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
    "moe_intermediate_size": 64, "final_logit_softcapping": 30.0, "use_bidirectional_attention": None,
    "tie_word_embeddings": True,
}  # fmt: skip
# Without experts, a second embedding for each layer, and layers that use the keys and values of earlier ones.
_GEMMA4_SMALL = _GEMMA4_TEXT | {
    "enable_moe_block": False, "hidden_size_per_layer_input": 64, "num_kv_shared_layers": 2, "attention_k_eq_v": False,
    "layer_types": ["sliding_attention", "full_attention"] * 3, "global_head_dim": 32,
}  # fmt: skip
_VISION = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2,
    "position_embedding_size": 64, "standardize": True, "use_clipped_linears": False,
}  # fmt: skip
_GEMMA4_TOP = {
    "tie_word_embeddings": True, "vision_config": _VISION, "audio_config": None, "dtype": "bfloat16",
    "vocab_size": VOCABULARY, "boi_token_id": 4, "eoi_token_id": 5, "image_token_id": 6, "video_token_id": 7,
    "audio_token_id": 8,
}  # fmt: skip
RUNNABLE: dict[str, dict[str, Any]] = {
    "gemma4": {**_GEMMA4_TOP, "text_config": _GEMMA4_TEXT},
    "gemma4 small": {**_GEMMA4_TOP, "text_config": _GEMMA4_SMALL},
    # mlx_lm rounds the square root of this width to BF16; that of 256 has nothing to round.
    "gemma3_text": _COMMON
    | {"tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 32, "hidden_size": 256},
    "glm4_moe": _COMMON
    | {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "use_qk_norm": True,
        "attention_bias": True, "partial_rotary_factor": 0.5, "routed_scaling_factor": 1.0,
    },
    "llama": _COMMON,
    "mixtral": _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "phi3": _COMMON | {"tie_word_embeddings": False, "sliding_window": None, "original_max_position_embeddings": 512},
    "qwen2": _COMMON,
    "qwen3": _COMMON | {"tie_word_embeddings": True},
    "qwen3_moe": _COMMON | _EXPERTS | {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
}  # fmt: skip


# As configurations on the Hub say it; transformers now writes these elsewhere, where mlx_lm does not look.
_ON_THE_HUB: dict[str, dict[str, Any]] = {
    "gemma4": {"global_head_dim": 64, "num_global_key_value_heads": 1},
    "gemma4 small": {"global_head_dim": 32},
    "gemma3_text": {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6},
    "glm4_moe": {"rope_theta": 10000.0, "rope_scaling": None, "partial_rotary_factor": 0.5},
    "mixtral": {"rope_theta": 1000000.0},
    "qwen2": {"rope_theta": 10000.0},
    "qwen3_moe": {"rope_theta": 10000.0, "num_experts": 4},
}


def random_model(folder: Path, kind: str, *, shards: str = "1GB") -> Path:
    """One of `RUNNABLE`, random, as transformers saves it, tokenizer included."""
    import torch
    from support import tiny_models
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    config = AutoConfig.for_model(kind.partition(" ")[0], **RUNNABLE[kind])
    model = AutoModelForCausalLM.from_config(config)
    tiny_models.randomise(model, seed=len(kind))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            # Decisive routers: an undecided one sends tokens elsewhere at the smallest rounding.
            if name.endswith(("router.proj.weight", "mlp.gate.weight", "block_sparse_moe.gate.weight")):
                value.mul_(6)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shards)
    tiny_models.save_tokenizer(folder)
    path = folder / "config.json"
    said = json.loads(path.read_text())
    said.get("text_config", said).update(_ON_THE_HUB.get(kind, {}))
    path.write_text(json.dumps(said, indent=2))
    return folder
