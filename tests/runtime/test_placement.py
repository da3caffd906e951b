"""device_map: everything on the CPU, automatic, and some layers offloaded to disk."""

import pytest
import torch
import transformers
from support import mixed, pack
from transformers import AutoModelForCausalLM

import tqcli
from tqcli.errors import InputError
from tqcli.formats.native import SUFFIXES


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("folder", ["ours", "published"])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama", "qwen3"])
def test_offloaded_to_disk(name, folder, dtype, request, tmp_path, ids):
    path = request.getfixturevalue(folder)[name]
    model = load(path, dtype=dtype, device_map=disk_map(name), offload_folder=tmp_path / "offload")
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    found = logits(model, ids)
    assert found.isfinite().all()
    assert torch.equal(found, logits(load(path, dtype=dtype), ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama", "qwen3"])
def test_weights_of_all_formats_offloaded(name, dtype, sources, tmp_path, ids):
    """Layers, and the table of 8-bit rows with the head that may be tied to it."""
    folder = mixed.write(sources[name], tmp_path / "x", *mixed.pack_tensors(sources[name]))
    embedding = "model.language_model.embed_tokens" if name == "gemma4" else "model.embed_tokens"
    expected = logits(load(folder, dtype=dtype), ids)
    for number, place in enumerate(("cpu", "disk")):
        places = {**disk_map(name), embedding: place}
        model = load(folder, dtype=dtype, device_map=places, offload_folder=tmp_path / f"offload-{number}")
        assert any(parameter.device.type == "meta" for parameter in model.parameters())
        assert torch.equal(logits(model, ids), expected)


def test_a_model_of_all_formats_is_saved_whole_while_offloaded(sources, tmp_path):
    folder = mixed.write(sources["llama"], tmp_path / "x", *mixed.pack_tensors(sources["llama"]))
    model = load(folder, device_map=disk_map("llama"), offload_folder=tmp_path / "offload")
    model.save_pretrained(tmp_path / "y")
    before, after = pack.tensors_of(folder), pack.tensors_of(tmp_path / "y")
    assert sorted(before) == sorted(after)
    assert all(torch.equal(before[key], tensor) for key, tensor in after.items() if key.endswith(SUFFIXES))


def test_offloaded_packed_embedding(sources, tmp_path, ids):
    def packs(tensor, shape):
        return "embed_tokens" in tensor or pack.is_packed_by_default(tensor, shape)

    tensors = pack.pack_tensors(sources["llama"], packs=packs)
    folder = pack.write(sources["llama"], tmp_path / "x", tensors, section=pack.our_section())
    places = {**disk_map("llama"), "model.embed_tokens": "disk"}
    model = load(folder, device_map=places, offload_folder=tmp_path / "offload")
    assert torch.equal(logits(model, ids), logits(load(folder), ids))


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe"])
def test_compressed_while_loading(name, sources, tmp_path, ids):
    """Placed on the CPU, or partly offloaded: the same model."""
    config = tqcli.TqConfig(scale="norm", embeddings=8)
    expected = logits(load(sources[name], quantization_config=config), ids)
    everywhere = load(sources[name], quantization_config=config, device_map="auto")
    assert torch.equal(logits(everywhere, ids), expected)
    offload = {"device_map": disk_map(name), "offload_folder": tmp_path / "offload"}
    offloaded = load(sources[name], quantization_config=config, **offload)
    assert torch.equal(logits(offloaded, ids), expected)


# transformers 5.5 to 5.12 cannot save any offloaded model with per-expert weights on disk: an AttributeError of theirs.
SAVES_OFFLOADED_EXPERTS = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 18)


@pytest.mark.parametrize(
    "name",
    [
        "gemma4",
        pytest.param("qwen3_moe", marks=pytest.mark.skipif(not SAVES_OFFLOADED_EXPERTS, reason="stock cannot either")),
    ],
)
def test_an_offloaded_model_is_saved_whole(name, ours, tmp_path):
    model = load(ours[name], device_map=disk_map(name), offload_folder=tmp_path / "offload")
    model.save_pretrained(tmp_path / "x")
    before, after = pack.tensors_of(ours[name]), pack.tensors_of(tmp_path / "x")
    assert sorted(before) == sorted(after)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items() if ".tq_" in key)


def test_an_offloaded_model_is_not_unpacked_into_nothing(ours, tmp_path):
    model = load(ours["llama"], device_map=disk_map("llama"), offload_folder=tmp_path / "offload")
    with pytest.raises(InputError, match="offloaded"):
        model.dequantize()
