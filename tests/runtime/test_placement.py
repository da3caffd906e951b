"""device_map: everything on the CPU, automatic, and some layers offloaded to disk."""

import pytest
import torch
from support import pack
from transformers import AutoModelForCausalLM


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=["cpu", "auto", "dict"])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe"])
def test_on_the_cpu(name, device_map, ours, ids):
    assert torch.equal(logits(load(ours[name], device_map=device_map), ids), logits(load(ours[name]), ids))


def disk_map(name: str) -> dict[str, str]:
    """The middle layer, and the embedding, on disk."""
    if name == "gemma4":
        prefix, rest = "model.language_model", ["model.vision_tower", "model.embed_vision"]
    else:
        prefix, rest = "model", []
    layers = {f"{prefix}.layers.{number}": "disk" if number == 1 else "cpu" for number in range(3 if rest else 2)}
    parts = [*rest, "lm_head", f"{prefix}.norm", f"{prefix}.rotary_emb", f"{prefix}.embed_tokens"]
    return {**layers, **dict.fromkeys(parts, "cpu")}


@pytest.mark.parametrize("folder", ["ours", "published"])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama", "qwen3"])
def test_offloaded_to_disk(name, folder, request, tmp_path, ids):
    path = request.getfixturevalue(folder)[name]
    model = load(path, device_map=disk_map(name), offload_folder=tmp_path / "offload")
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    found = logits(model, ids)
    assert found.isfinite().all()
    assert torch.equal(found, logits(load(path), ids))


def test_offloaded_packed_embedding(sources, tmp_path, ids):
    def packs(tensor, shape):
        return "embed_tokens" in tensor or pack.is_packed_by_default(tensor, shape)

    tensors = pack.pack_tensors(sources["llama"], packs=packs)
    folder = pack.write(sources["llama"], tmp_path / "x", tensors, section=pack.our_section())
    places = {**disk_map("llama"), "model.embed_tokens": "disk"}
    model = load(folder, device_map=places, offload_folder=tmp_path / "offload")
    assert torch.equal(logits(model, ids), logits(load(folder), ids))
