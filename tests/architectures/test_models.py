"""Our rules against the names that transformers gives to its models, in memory and on disk."""

from collections import Counter

import pytest

from tqcli.architectures.base import find
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder

pytestmark = pytest.mark.slow

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "n_routed_experts": 4, "first_k_dense_replace": 1}
GEMMA4 = TEXT | {
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_global_key_value_heads": 1,
    "global_head_dim": 16,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
}

CONFIGS = {
    "llama": TEXT,
    "mistral": TEXT,
    "qwen2": TEXT,
    "qwen3": TEXT,
    "phi3": TEXT,
    "gemma3_text": TEXT,
    "mixtral": TEXT | {"num_local_experts": 4},
    "qwen3_moe": TEXT | {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "glm4_moe": TEXT | EXPERTS | {"use_qk_norm": True},
    "deepseek_v3": TEXT
    | EXPERTS
    | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "n_group": 1, "topk_group": 1},
    "gemma4_text": GEMMA4,
    "gemma3": {"text_config": TEXT, "vision_config": VISION | {"image_size": 28, "patch_size": 14}},
    "gemma4": {"text_config": GEMMA4, "vision_config": VISION, "audio_config": None},
}

ATTENTION = {"q": 2, "k": 2, "v": 2, "o": 2}
DENSE = ATTENTION | {"gate": 2, "up": 2, "down": 2}
ENDS = {"embed": 1, "head": 1}
# One dense layer; in the other four experts and a shared one.
HALF = ATTENTION | ENDS | {"gate": 2, "up": 2, "down": 2, "router": 2}
ONE_LAYER_OF_EXPERTS = {"expert_gate": 4, "expert_up": 4, "expert_down": 4}
TWO_LAYERS_OF_EXPERTS = {"expert_gate": 8, "expert_up": 8, "expert_down": 8}
# One of the two layers has no v_proj.
GEMMA4_ROLES = DENSE | ENDS | {"v": 1, "router": 6, "expert_gate+expert_up": 2, "expert_down": 2, "norm": 21}

ON_DISK = {
    "llama": DENSE | ENDS | {"norm": 5},
    "mistral": DENSE | ENDS | {"norm": 5},
    "qwen2": DENSE | ENDS | {"norm": 5, "other": 6},
    "qwen3": DENSE | ENDS | {"norm": 9},
    "phi3": ENDS | {"q+k+v": 2, "o": 2, "gate+up": 2, "down": 2, "norm": 5},
    "gemma3_text": DENSE | ENDS | {"norm": 13},
    "mixtral": ATTENTION | ENDS | TWO_LAYERS_OF_EXPERTS | {"router": 2, "norm": 5},
    "qwen3_moe": ATTENTION | ENDS | TWO_LAYERS_OF_EXPERTS | {"router": 2, "norm": 9},
    "glm4_moe": HALF | ONE_LAYER_OF_EXPERTS | {"norm": 9},
    "deepseek_v3": HALF | ONE_LAYER_OF_EXPERTS | {"q": 4, "norm": 9},
    "gemma4_text": GEMMA4_ROLES,
}


def build(model_type):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    text_only = "text_config" not in CONFIGS[model_type]
    kind = AutoModelForCausalLM if text_only else AutoModelForImageTextToText
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type], tie_word_embeddings=False)
    return kind.from_config(config), config


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_matrix_of_the_model_in_memory_has_a_role(model_type):
    import torch

    with torch.device("meta"):
        model, config = build(model_type)
    architecture = find(config.to_dict())
    assert architecture.layers(config.to_dict()) == 2
    for name, tensor in model.state_dict().items():
        role = architecture.classify(name)
        assert tensor.dim() < 2 or role.roles != ("other",), name
        in_layer = ".layers." in name and "_tower." not in name
        assert (role.layer in (0, 1)) if in_layer else role.layer is None, name


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_files_that_transformers_writes(model_type, tmp_path):
    model, _ = build(model_type)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(LocalFolder(tmp_path))
    architecture = find(checkpoint.config)
    assert architecture.layers(checkpoint.config) == 2
    roles = {name: architecture.classify(name) for name in checkpoint.tensors}
    counts = Counter("+".join(role.roles) for role in roles.values())
    for name, tensor in checkpoint.tensors.items():
        assert len(tensor.shape) < 2 or roles[name].roles != ("other",), name
    if model_type in ON_DISK:
        assert counts == ON_DISK[model_type]
    else:
        text = ON_DISK[f"{model_type}_text"]
        assert {role: count for role, count in counts.items() if role != "vision"} == text
        assert counts["vision"] > 10
    experts = [role for role in roles.values() if role.roles[0].startswith("expert_") and role.expert is not None]
    assert {role.expert for role in experts} in (set(), {0, 1, 2, 3})
    assert len({role.block for role in experts}) <= 2
