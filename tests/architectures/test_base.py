import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tqcli.architectures.base import TensorRole, find, known
from tqcli.errors import InputError

GEMMA4 = Path(__file__).parents[3] / "shared" / "gemma4"

MODEL_TYPES = (
    "deepseek_v3",
    "gemma3",
    "gemma3_text",
    "gemma4",
    "gemma4_text",
    "glm4_moe",
    "llama",
    "mistral",
    "mixtral",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
)


def classify(model_type, name):
    return find({"model_type": model_type}).classify(name)


def test_the_folder_is_the_list():
    assert known() == MODEL_TYPES


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_each_is_found_and_knows_the_ends(model_type):
    assert classify(model_type, "model.embed_tokens.weight").roles == ("embed",)
    assert classify(model_type, "model.norm.weight").roles == ("norm",)
    assert classify(model_type, "lm_head.weight").roles == ("head",)


@pytest.mark.parametrize(
    "model_type", ["base", "rules", "", "Llama", "../llama", "llama.base", "os", "a" * 65, None, 1, [], "llama\n"]
)
def test_what_is_not_a_model_type_is_refused(model_type):
    with pytest.raises(InputError):
        find({"model_type": model_type})


def test_an_unknown_architecture_is_named_with_its_nearest():
    with pytest.raises(InputError, match="unknown architecture `lama`; did you mean `llama`") as caught:
        find({"model_type": "lama"})
    assert all(f"`{name}`" in caught.value.fix for name in MODEL_TYPES)
    with pytest.raises(InputError, match="has no usable `model_type`"):
        find({})


def test_a_projection():
    role = classify("llama", "model.layers.12.self_attn.k_proj.weight")
    assert role == TensorRole(("k",), 12, "model.layers.12.self_attn", None)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model."])
def test_prefixes_of_multimodal_and_text_models(prefix):
    role = classify("gemma3", f"{prefix}layers.3.mlp.up_proj.weight")
    assert role == TensorRole(("up",), 3, f"{prefix}layers.3.mlp", None)


def test_all_experts_of_a_layer_share_a_block():
    fused = classify("qwen3_moe", "model.layers.1.mlp.experts.gate_up_proj")
    single = classify("qwen3_moe", "model.layers.1.mlp.experts.77.gate_proj.weight")
    assert fused == TensorRole(("expert_gate", "expert_up"), 1, "model.layers.1.mlp.experts", None)
    assert single == TensorRole(("expert_gate",), 1, "model.layers.1.mlp.experts", 77)
    assert classify("qwen3_moe", "model.layers.1.mlp.gate_proj.weight").block == "model.layers.1.mlp"


def test_experts_of_mixtral():
    roles = [classify("mixtral", f"model.layers.0.block_sparse_moe.experts.3.w{n}.weight") for n in (1, 3, 2)]
    assert [role.roles for role in roles] == [("expert_gate",), ("expert_up",), ("expert_down",)]
    assert {role.block for role in roles} == {"model.layers.0.block_sparse_moe.experts"}
    assert classify("mixtral", "model.layers.0.block_sparse_moe.gate.weight").roles == ("router",)


@pytest.mark.parametrize(
    ("name", "roles", "layer"),
    [
        ("model.layers.61.eh_proj.weight", ("other",), 61),
        ("model.layers.61.enorm.weight", ("norm",), 61),
        ("model.layers.61.shared_head.head.weight", ("head",), 61),
        ("model.layers.61.shared_head.norm.weight", ("norm",), 61),
        ("model.layers.61.embed_tokens.weight", ("embed",), 61),
        ("model.layers.61.mlp.experts.0.down_proj.weight", ("expert_down",), 61),
        ("model.layers.3.self_attn.q_a_proj.weight", ("q",), 3),
        ("model.layers.3.self_attn.q_proj.weight", ("q",), 3),
        ("model.layers.3.self_attn.kv_a_layernorm.weight", ("norm",), 3),
        ("model.layers.3.mlp.gate.e_score_correction_bias", ("router",), 3),
        ("model.layers.3.mlp.experts.0.gate_proj.weight_scale_inv", ("other",), 3),
    ],
)
def test_deepseek_names_that_transformers_drops_or_renames(name, roles, layer):
    role = classify("deepseek_v3", name)
    assert (role.roles, role.layer) == (roles, layer)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision"),
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight", "vision"),
        ("multi_modal_projector.mm_input_projection_weight", "vision"),
        ("model.embed_vision.embedding_projection.weight", "vision"),
        ("model.audio_tower.layers.0.self_attn.q_proj.linear.weight", "audio"),
        ("model.embed_audio.embedding_projection.weight", "audio"),
        ("model.language_model.embed_tokens_per_layer.weight", "embed"),
        ("language_model.lm_head.weight", "head"),
    ],
)
def test_parts_beside_the_language_model(name, role):
    found = classify("gemma4", name)
    assert (found.roles, found.layer) == ((role,), None)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.new_proj.weight", "", "x\ny", "\ud800"]
)
def test_what_is_not_known_is_left_alone(name):
    assert classify("qwen2", name).roles == ("other",)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_name_has_a_role(name):
    for model_type in MODEL_TYPES:
        assert classify(model_type, name).roles


def test_layers_are_those_of_the_text_model():
    llama = find({"model_type": "llama"})
    assert llama.layers({"num_hidden_layers": 32}) == 32
    assert llama.layers({"text_config": {"num_hidden_layers": 30}, "num_hidden_layers": 7}) == 30
    assert llama.layers({"text_config": None, "num_hidden_layers": 7}) == 7


@pytest.mark.parametrize("count", [None, 0, -1, True, 1.0, "32", 10_001, [], 10**400])
def test_layers_that_cannot_be(count):
    with pytest.raises(InputError, match="how many layers"):
        find({"model_type": "llama"}).layers({"num_hidden_layers": count})
    with pytest.raises(InputError, match="how many layers"):
        find({"model_type": "llama"}).layers({"text_config": [], "num_hidden_layers": 3})


@pytest.mark.skipif(not GEMMA4.is_dir(), reason="the list of tensors is not here")
def test_every_tensor_of_gemma_4_26b():
    config = json.loads((GEMMA4 / "config.json").read_text())
    tensors = json.loads((GEMMA4 / "tensors.json").read_text())["tensors"]
    architecture = find(config)
    assert (architecture.layers(config), len(tensors)) == (30, 1013)
    roles = {name: architecture.classify(name) for name in tensors}
    assert Counter(role.roles for role in roles.values()) == {
        ("vision",): 356,
        ("norm",): 301,
        ("router",): 90,
        ("q",): 30,
        ("k",): 30,
        ("v",): 25,
        ("o",): 30,
        ("gate",): 30,
        ("up",): 30,
        ("down",): 30,
        ("expert_gate", "expert_up"): 30,
        ("expert_down",): 30,
        ("embed",): 1,
    }
    assert Counter(role.layer for role in roles.values() if role.layer is not None).keys() == set(range(30))
