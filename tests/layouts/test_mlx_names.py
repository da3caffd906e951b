"""mlx_lm's names for every model type: what is called how, what is left out and why, and the way back."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import mlx_models
from support.command import succeed

from tqcli.architectures.base import find
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError
from tqcli.layouts.mlx import LAYOUT
from tqcli.layouts.mlx_names import NAMES, TextShape
from tqcli.layouts.originals import original_weights
from tqcli.weights import read_rows

TOWERS = "mlx_lm runs the language model alone"
NOT_RUN = "mlx_lm does not run it"
LAYER = "model.layers.0."


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Model type -> (its folder opened, its weights)."""
    root = tmp_path_factory.mktemp("by-hand")
    with ExitStack() as stack:
        found = {}
        for model_type in NAMES:
            storage = stack.enter_context(LocalFolder(mlx_models.by_hand(root / model_type, model_type)))
            checkpoint = open_checkpoint(storage)
            found[model_type] = checkpoint, original_weights(checkpoint, find(checkpoint.config))
        yield found


def arrange(folder):
    with LocalFolder(folder) as storage:
        checkpoint = open_checkpoint(storage)
        originals = original_weights(checkpoint, find(checkpoint.config))
    arrangement = LAYOUT.arrange(originals, checkpoint)
    arrangement.check(originals)
    return arrangement


def left_out(arrangement):
    return {one.weight.name: one.why for one in arrangement.left_out}


def test_every_model_type_has_a_checkpoint_here():
    assert set(mlx_models.SHAPES) == set(NAMES)


# An original name -> the name in MLX's folder.
RENAMED = {
    ("gemma3", "language_model.model.layers.0.mlp.up_proj.weight"): "language_model.model.layers.0.mlp.up_proj.weight",
    ("gemma3_text", "model.norm.weight"): "model.norm.weight",
    ("gemma4", "model.language_model.embed_tokens.weight"): "language_model.model.embed_tokens.weight",
    ("gemma4", "model.language_model.layers.1.layer_scalar"): "language_model.model.layers.1.layer_scalar",
    ("gemma4", "model.language_model.layers.1.router.scale"): "language_model.model.layers.1.router.scale",
    ("gemma4_text", LAYER + "self_attn.q_proj.weight"): LAYER + "self_attn.q_proj.weight",
    ("glm4_moe", LAYER + "mlp.up_proj.weight"): LAYER + "mlp.up_proj.weight",
    ("glm4_moe", "model.layers.1.mlp.gate.e_score_correction_bias"): "model.layers.1.mlp.gate.e_score_correction_bias",
    ("mistral", "lm_head.weight"): "lm_head.weight",
    ("phi3", LAYER + "self_attn.qkv_proj.weight"): LAYER + "self_attn.qkv_proj.weight",
    ("qwen2", LAYER + "self_attn.q_proj.bias"): LAYER + "self_attn.q_proj.bias",
    ("qwen3", LAYER + "self_attn.q_norm.weight"): LAYER + "self_attn.q_norm.weight",
}  # fmt: skip


@pytest.mark.parametrize(("place", "expected"), RENAMED.items())
def test_a_weight_has_the_name_that_mlx_lm_gives_it(place, expected, sources):
    model_type, name = place
    checkpoint, originals = sources[model_type]
    (weight,) = [one for one in originals if one.name == name]
    (found,) = [one for one in LAYOUT.arrange(originals, checkpoint).weights if one.name == expected]
    assert (found.runs, found.shape, found.dtype, found.selector) == (weight.runs, weight.shape, weight.dtype, name)


# Model type -> experts of a layer in the original, and in MLX's folder.
STACKS = {
    "gemma4": ("model.language_model.layers.1.experts", "language_model.model.layers.1.experts.switch_glu"),
    "gemma4_text": ("model.layers.1.experts", "model.layers.1.experts.switch_glu"),
    "glm4_moe": ("model.layers.1.mlp.experts", "model.layers.1.mlp.switch_mlp"),
    "mixtral": ("model.layers.1.block_sparse_moe.experts", "model.layers.1.block_sparse_moe.switch_mlp"),
    "qwen3_moe": ("model.layers.1.mlp.experts", "model.layers.1.mlp.switch_mlp"),
}


@pytest.mark.parametrize("model_type", STACKS)
def test_experts_are_stacked_in_their_order(model_type, sources):
    """Compared by value with NumPy's own cutting and stacking."""
    checkpoint, originals = sources[model_type]
    by_name = {one.name: values(checkpoint, one).reshape(one.shape) for one in originals}
    found = {one.name: one for one in LAYOUT.arrange(originals, checkpoint).weights}
    parent, module = STACKS[model_type]
    for leaf, expected in stacked(by_name, parent, model_type).items():
        weight = found[f"{module}.{leaf}.weight"]
        assert weight.shape == expected.shape
        assert np.array_equal(values(checkpoint, weight).reshape(weight.shape), expected)
    assert not [name for name in found if name.startswith(parent + ".") and not name.startswith(module)]
    assert {one.role.expert for one in found.values()} == {None}


def stacked(by_name, parent, model_type):
    if model_type.startswith("gemma4"):
        gate, up = np.split(by_name[parent + ".gate_up_proj"], 2, axis=1)
        return {"gate_proj": gate, "up_proj": up, "down_proj": by_name[parent + ".down_proj"]}
    leaves = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if model_type == "mixtral" else {}
    return {
        leaf: np.stack([by_name[f"{parent}.{expert}.{leaves.get(leaf, leaf)}.weight"] for expert in range(3)])
        for leaf in ("gate_proj", "up_proj", "down_proj")
    }


def values(checkpoint, weight):
    return read_rows(checkpoint.storage, weight, 0, weight.rows)


@pytest.mark.parametrize("model_type", NAMES)
def test_every_row_is_placed_once(model_type, sources):
    checkpoint, originals = sources[model_type]
    arrangement = LAYOUT.arrange(originals, checkpoint)
    arrangement.check(originals)
    names = [one.name for one in arrangement.weights]
    assert len(names) == len(set(names))
    assert sum(one.parameters for one in arrangement.weights) + sum(
        one.weight.parameters for one in arrangement.left_out
    ) == sum(one.parameters for one in originals)


@pytest.mark.parametrize("model_type", ["gemma4", "glm4_moe", "qwen3_moe"])
def test_a_row_that_is_lost_or_doubled_is_noticed(model_type, sources):
    checkpoint, originals = sources[model_type]
    arrangement = LAYOUT.arrange(originals, checkpoint)
    for damaged in (arrangement.weights[1:], (*arrangement.weights, arrangement.weights[-1])):
        with pytest.raises(RuntimeError, match="the layout mlx"):
            replace(arrangement, weights=damaged).check(originals)


LEFT_OUT = {
    "gemma3": {
        "multi_modal_projector.mm_input_projection_weight": TOWERS,
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": TOWERS,
    },
    "gemma4": {
        "model.vision_tower.patch_embedder.input_proj.weight": TOWERS,
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight": TOWERS,
        "model.embed_vision.embedding_projection.weight": TOWERS,
        "model.audio_tower.layers.0.norm_out.weight": TOWERS,
        "model.embed_audio.embedding_projection.weight": TOWERS,
    },
}


@pytest.mark.parametrize("model_type", [name for name in NAMES if name != "glm4_moe"])
def test_towers_alone_are_left_out(model_type, sources):
    checkpoint, originals = sources[model_type]
    assert left_out(LAYOUT.arrange(originals, checkpoint)) == LEFT_OUT.get(model_type, {})


@pytest.mark.parametrize("layers", [2, 3, 12])
def test_layers_that_predict_further_tokens_are_left_out(layers, tmp_path):
    found = arrange(mlx_models.by_hand(tmp_path / "model", "glm4_moe", layers=layers))
    gone = left_out(found)
    prefix = f"model.layers.{layers}."
    assert set(gone.values()) == {NOT_RUN}
    assert gone.keys() == {name for name in mlx_models.SHAPES["glm4_moe"](layers) if name.startswith(prefix)}
    assert {prefix + "eh_proj.weight", prefix + "shared_head.head.weight"} <= gone.keys()
    assert not [one.name for one in found.weights if one.name.startswith(prefix)]


@pytest.mark.parametrize(("layers", "sharing"), [(4, 0), (4, 1), (5, 3), (3, 3)])
@pytest.mark.parametrize("model_type", ["gemma4", "gemma4_text"])
def test_layers_that_use_earlier_keys_and_values_have_none(model_type, layers, sharing, tmp_path):
    folder = mlx_models.by_hand(tmp_path / "model", model_type, layers=layers, num_kv_shared_layers=sharing)
    gone = {name for name, why in left_out(arrange(folder)).items() if why == NOT_RUN}
    prefix = "model.language_model." if model_type == "gemma4" else "model."
    assert gone == {
        f"{prefix}layers.{layer}.self_attn.{leaf}.weight"
        for layer in range(layers - sharing, layers)
        for leaf in ("k_proj", "v_proj", "k_norm")
    }


@pytest.mark.parametrize(("tied", "expected"), [(True, {"lm_head.weight": NOT_RUN}), (False, {}), (None, {})])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe"])
def test_a_head_that_is_tied_is_left_out(model_type, tied, expected, tmp_path):
    folder = mlx_models.by_hand(tmp_path / "model", model_type, tie_word_embeddings=tied)
    assert left_out(arrange(folder)) == expected


def test_frequencies_and_ranges_are_left_out(tmp_path, monkeypatch):
    unused = {
        LAYER + "self_attn.rotary_emb.inv_freq": (16,),
        LAYER + "self_attn.q_proj.input_max": (1,),
        LAYER + "mlp.up_proj.output_min": (1,),
    }
    shapes = mlx_models.SHAPES["gemma4_text"]
    monkeypatch.setitem(mlx_models.SHAPES, "gemma4_text", lambda layers: shapes(layers) | unused)
    assert left_out(arrange(mlx_models.by_hand(tmp_path / "model", "gemma4_text"))) == dict.fromkeys(unused, NOT_RUN)


def test_a_router_that_is_no_linear_module_there_is_never_compressed(tmp_path):
    """Even where a recipe names it: mlx_lm has no quantised form of it and would refuse the folder."""
    recipe = tmp_path / "routers.toml"
    recipe.write_text('format = "mlx"\nbits = 4\n[[override]]\nroles = ["router"]\noptional = true\nbits = 8\n')
    for model_type, compressed in (("glm4_moe", False), ("qwen3_moe", True)):
        mlx_models.by_hand(tmp_path / model_type, model_type)
        succeed("convert", tmp_path / model_type, tmp_path / "out" / model_type, "-r", recipe)
        names = open_checkpoint(LocalFolder(tmp_path / "out" / model_type)).tensors
        assert ("model.layers.1.mlp.gate.scales" in names) == compressed
        assert names["model.layers.1.mlp.gate.weight"].dtype == ("U32" if compressed else "BF16")


EXPERTS = "model.layers.1.mlp.experts."
# Names that are gone, or the shape that one has instead.
INCOMPLETE = {
    "one in the middle": ((EXPERTS + "1.up_proj.weight",), None),
    "the first": ((EXPERTS + "0.down_proj.weight",), None),
    "the last": ((EXPERTS + "2.up_proj.weight",), None),
    "all of one kind": (tuple(f"{EXPERTS}{expert}.gate_proj.weight" for expert in range(3)), None),
    "a whole expert": (tuple(f"{EXPERTS}2.{leaf}_proj.weight" for leaf in ("gate", "up", "down")), None),
    "another width": ((EXPERTS + "2.gate_proj.weight",), (32, 128)),
}


@pytest.mark.parametrize(("names", "shape"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_experts_that_are_not_whole(names, shape, tmp_path, monkeypatch):
    made = mlx_models.SHAPES["qwen3_moe"](2)
    changed = {one: shape if one in names else was for one, was in made.items() if one not in names or shape}
    monkeypatch.setitem(mlx_models.SHAPES, "qwen3_moe", lambda layers: changed)
    with pytest.raises(InputError, match=r"the experts of `model\.layers\.1\.mlp\.experts` are not whole"):
        arrange(mlx_models.by_hand(tmp_path / "model", "qwen3_moe", num_experts=3))


def test_experts_that_config_json_does_not_count(tmp_path):
    found = {one.name: one.shape for one in arrange(mlx_models.by_hand(tmp_path / "model", "qwen3_moe")).weights}
    assert found["model.layers.1.mlp.switch_mlp.down_proj.weight"] == (3, 128, 64)


def test_a_model_type_whose_names_are_not_known(sources):
    checkpoint, originals = sources["llama"]
    other = replace(checkpoint, config={"model_type": "deepseek_v3", "num_hidden_layers": 2})
    with pytest.raises(InputError, match="`deepseek_v3` cannot be laid out for MLX") as caught:
        LAYOUT.arrange(originals, other)
    assert all(f"`{name}`" in caught.value.fix for name in NAMES)


@pytest.mark.parametrize("model_type", NAMES)
def test_restoring_is_the_way_back(model_type, tmp_path):
    """Names, shapes, dtypes, and every value within what 8 bits lose: no two rows have changed their places."""
    source = mlx_models.by_hand(tmp_path / "source", model_type)
    recipe = tmp_path / "eight.toml"
    recipe.write_text('format = "mlx"\nbits = 8\nprotect = []\n')
    succeed("convert", source, tmp_path / "out", "-r", recipe, "--shard-size", "100KB")
    gone = left_out(arrange(source))
    with LocalFolder(source) as old, LocalFolder(tmp_path / "out") as new:
        before, after = open_checkpoint(old), open_checkpoint(new)
        originals = {one.name: one for one in original_weights(before, find(before.config)) if one.name not in gone}
        restored = {one.name: one for one in original_weights(after, find(after.config))}
        shapes = {canonical(name): one.shape for name, one in originals.items()}
        assert {name: one.shape for name, one in restored.items()} == shapes
        for name, weight in originals.items():
            found = restored[canonical(name)]
            assert (found.dtype, found.role.roles) == (weight.dtype, weight.role.roles)
            wanted = values(before, weight)
            assert np.abs(values(after, found) - wanted).max() <= np.abs(wanted).max() / 100
    assert sum(not one.is_plain for one in restored.values()) > len(restored) // 4


def canonical(name):
    """Where checkpoints of towers and text have two prefixes, the newer one is restored."""
    return name.replace("language_model.model.", "model.language_model.")


@given(
    layers=st.integers(1, 12),
    sharing=st.one_of(st.none(), st.integers(0, 12), st.booleans(), st.text(max_size=3)),
    tied=st.one_of(st.none(), st.booleans(), st.just("yes")),
    experts=st.one_of(st.none(), st.integers(1, 200)),
    nested=st.booleans(),
)
def test_what_config_json_says_of_the_text(layers, sharing, tied, experts, nested):
    said = {"num_kv_shared_layers": sharing, "tie_word_embeddings": tied, "num_local_experts": experts}
    found = TextShape.of({"text_config": said} if nested else said, layers)
    assert found == TextShape(layers, sharing if type(sharing) is int else 0, tied is True, experts)
