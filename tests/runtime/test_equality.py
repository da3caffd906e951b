"""A packed model computes what the stock model computes with the decoded weights: to the bit."""

import pytest
import torch
from support import pack, tiny_models
from support.plain_decode import reference
from transformers import AutoModelForCausalLM

from tqcli.runtime.transformers.weight import TqWeight

MODELS = sorted(tiny_models.BUILDERS)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def load(folder, dtype=torch.float32, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_our_checkpoints(name, dtype, sources, ours, ids):
    model = load(ours[name], dtype)
    expected = reference(sources[name], ours[name], dtype)
    assert torch.equal(logits(model, ids), logits(expected, ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_published_checkpoints(name, dtype, sources, published, ids):
    model = load(published[name], dtype)
    expected = reference(sources[name], published[name], dtype)
    assert torch.equal(logits(model, ids), logits(expected, ids))


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe"])
def test_generates_the_same_tokens(name, sources, ours, ids):
    model, expected = load(ours[name]), reference(sources[name], ours[name], torch.float32)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), expected.generate(ids, **options))


def test_the_compressed_model_is_not_the_plain_one(sources, ours, ids):
    """Guards the tests above: they would pass if nothing were packed."""
    plain = load(sources["gemma4"])
    assert not torch.equal(logits(load(ours["gemma4"]), ids), logits(plain, ids))


@pytest.mark.parametrize("name", MODELS)
def test_weights_stay_packed_in_memory(name, ours):
    model = load(ours[name])
    names = pack.tensors_of(ours[name])
    packed = sum(tensor.nbytes for key, tensor in names.items() if ".tq_" in key)
    held = [module for module in model.modules() if isinstance(module, TqWeight)]
    assert sum(weight.tq_packed.nbytes + weight.tq_norms.nbytes for weight in held) == packed
    assert all(weight.tq_packed.dtype == torch.uint8 and weight.tq_norms.dtype == torch.float32 for weight in held)
    assert not any(parameter.requires_grad for weight in held for parameter in weight.parameters())


@pytest.mark.parametrize("folder", ["ours", "published"])
def test_vision_tower(folder, sources, request):
    path = request.getfixturevalue(folder)["gemma4"]
    model, expected = load(path), reference(sources["gemma4"], path, torch.float32)
    pixels = torch.rand(1, 64, 48, generator=torch.Generator().manual_seed(1))
    grid = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"), -1).reshape(1, 64, 2)
    with torch.no_grad():
        towers = [m.model.vision_tower(pixel_values=pixels, pixel_position_ids=grid) for m in (model, expected)]
    assert torch.equal(towers[0].last_hidden_state, towers[1].last_hidden_state)
    assert towers[0].last_hidden_state.isfinite().all()


@pytest.mark.parametrize(("bits", "group_size", "seed"), [(2, 64, 42), (4, 256, 7), (3, 32, 0)])
def test_other_geometries(bits, group_size, seed, sources, tmp_path, ids):
    geometry = {"bits": bits, "group_size": group_size, "seed": seed}
    tensors = pack.pack_tensors(sources["qwen3"], **geometry)
    folder = pack.write(sources["qwen3"], tmp_path / "x", tensors, section=pack.our_section(**geometry))
    expected = reference(sources["qwen3"], folder, torch.float32, group_size, seed)
    assert torch.equal(logits(load(folder), ids), logits(expected, ids))


def test_tensors_with_their_own_bits_and_group_size(sources, tmp_path, ids):
    names = [
        name for name in pack.tensors_of(sources["gemma4"]) if name.endswith("down_proj") or "layers.0.mlp" in name
    ]
    overrides = {
        name: {"bits": 4, "group_size": 64, "seed": 42} for name in names if pack.is_packed_by_default(name, [2, 2])
    }
    tensors = pack.pack_tensors(sources["gemma4"], overrides=overrides)
    section = pack.our_section(tensors=overrides)
    folder = pack.write(sources["gemma4"], tmp_path / "x", tensors, section=section)
    groups = dict.fromkeys(overrides, 64)
    expected = reference(sources["gemma4"], folder, torch.float32, **groups)
    assert len(overrides) > 3
    assert torch.equal(logits(load(folder), ids), logits(expected, ids))


def test_mixed_bits_without_a_map(sources, tmp_path, ids):
    """Published checkpoints mix widths and do not say where."""
    overrides = {name: {"bits": 4} for name in pack.tensors_of(sources["qwen3_moe"]) if "down_proj" in name}
    tensors = pack.pack_tensors(sources["qwen3_moe"], overrides=overrides)
    folder = pack.write(sources["qwen3_moe"], tmp_path / "x", tensors, tq_config=pack.published_tq_config())
    expected = reference(sources["qwen3_moe"], folder, torch.float32)
    assert torch.equal(logits(load(folder), ids), logits(expected, ids))


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama"])
def test_packed_embedding(name, sources, tmp_path, ids):
    """Also where the head is tied to it."""

    def packs(tensor, shape):
        return "embed_tokens" in tensor or pack.is_packed_by_default(tensor, shape)

    tensors = pack.pack_tensors(sources[name], packs=packs)
    folder = pack.write(sources[name], tmp_path / "x", tensors, section=pack.our_section())
    model, expected = load(folder), reference(sources[name], folder, torch.float32)
    assert isinstance(model.get_input_embeddings().weight, TqWeight)
    assert torch.equal(logits(model, ids), logits(expected, ids))


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe"])
def test_rows_of_groups(name, sources, tmp_path, ids):
    """Codes may also be stored as (rows, groups * bytes)."""
    tensors = pack.pack_tensors(sources[name])
    for key in [key for key in tensors if key.endswith(".tq_packed")]:
        rows = len(tensors[key.replace("packed", "norms")])
        tensors[key] = tensors[key].view(rows, -1).contiguous()
    folder = pack.write(sources[name], tmp_path / "x", tensors, section=pack.our_section())
    expected = reference(sources[name], folder, torch.float32)
    assert torch.equal(logits(load(folder), ids), logits(expected, ids))


@pytest.mark.parametrize("name", MODELS)
def test_names_without_weight(name, sources, tmp_path, ids):
    """One early generation left `.weight` out of the names, routers packed too."""
    tensors = pack.pack_tensors(sources[name], packs=pack.is_packed_by_the_peer)
    renamed = {key.replace(".weight.tq_", ".tq_"): tensor for key, tensor in tensors.items()}
    folder = pack.write(sources[name], tmp_path / "x", renamed, tq_config=pack.published_tq_config())
    expected = reference(sources[name], folder, torch.float32)
    assert torch.equal(logits(load(folder), ids), logits(expected, ids))


def test_one_shard_and_no_index(sources, tmp_path, ids, ours):
    folder = pack.write(
        sources["llama"],
        tmp_path / "x",
        pack.pack_tensors(sources["llama"]),
        shards=1,
        tq_config=pack.published_tq_config(),
    )
    assert not (folder / "model.safetensors.index.json").exists()
    assert torch.equal(logits(load(folder), ids), logits(load(ours["llama"]), ids))


def test_config_section_of_the_third_generation(sources, tmp_path, ids, ours):
    """Without a format version, with keys that are not ours."""
    section = {"quant_method": "turboquant", "bits": 3, "group_size": 128, "sensitive_bits": 4}
    folder = pack.write(
        sources["llama"], tmp_path / "x", pack.pack_tensors(sources["llama"]), section=section, guard=False
    )
    assert torch.equal(logits(load(folder), ids), logits(load(ours["llama"]), ids))


def test_moving_to_a_dtype_keeps_what_is_packed(ours, sources, ids):
    model = load(ours["llama"]).to(torch.bfloat16)
    expected = reference(sources["llama"], ours["llama"], torch.float32).to(torch.bfloat16)
    assert torch.equal(logits(model, ids), logits(expected, ids))
