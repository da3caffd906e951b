"""On a GPU: packed there too, and close to the CPU's results."""

import pytest
import torch
from support import mixed, pack
from transformers import AutoModelForCausalLM

import tqcli
from tqcli.runtime.transformers.expert_cache import HostWeight
from tqcli.runtime.transformers.weight import TqWeight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def logits(model, ids):
    with torch.no_grad():
        return model(ids.to(model.device)).logits.float().cpu()


@pytest.mark.parametrize("folder", ["ours", "published"])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama"])
def test_logits(name, folder, request, ids):
    path = request.getfixturevalue(folder)[name]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map="cuda")
    held = [module for module in model.modules() if isinstance(module, TqWeight)]
    assert held
    assert all(weight.device.type == "cuda" for weight in held)
    expected = logits(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama", "qwen3"])
def test_weights_of_all_formats(name, sources, tmp_path, ids):
    """Decoded there to the same bits."""
    folder = mixed.write(sources[name], tmp_path / "x", *mixed.pack_tensors(sources[name]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cuda")
    here = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for there, weight in zip(model.modules(), here.modules(), strict=True):
        if isinstance(weight, TqWeight):
            assert there.device.type == "cuda"
            assert torch.equal(there.decode().cpu(), weight.decode())
    torch.testing.assert_close(logits(model, ids), logits(here, ids), rtol=1e-3, atol=1e-3)


def test_moved_there(ours, ids):
    model = AutoModelForCausalLM.from_pretrained(ours["gemma4"], dtype=torch.float32)
    expected = logits(model, ids)
    torch.testing.assert_close(logits(model.to("cuda"), ids), expected, rtol=1e-3, atol=1e-3)


def test_the_rest_on_the_cpu(ours, ids):
    """Layers that do not fit stay on the CPU, and come to the GPU packed when they run."""
    places = {"model.embed_tokens": 0, "lm_head": 0, "model.norm": 0, "model.rotary_emb": 0, "model.layers.0": 0}
    model = AutoModelForCausalLM.from_pretrained(
        ours["qwen3_moe"], dtype=torch.float32, device_map={**places, "model.layers.1": "cpu"}
    )
    expected = logits(AutoModelForCausalLM.from_pretrained(ours["qwen3_moe"], dtype=torch.float32), ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("slots", [6, 12])
def test_experts_in_host_memory(slots, sources, tmp_path, ids):
    """Tokens and logits are those of the model that is wholly there; copies overlap, evictions come."""
    folder = mixed.write(sources["qwen3_moe"], tmp_path / "x", *mixed.pack_tensors(sources["qwen3_moe"]))
    plain, _ = tqcli.load(folder, device_map="cuda")
    model, _ = tqcli.load(folder, device_map="cuda", expert_cache=slots)
    held = [module for module in model.modules() if isinstance(module, HostWeight)]
    assert len(held) == 4
    assert all(part.device.type == "cpu" and part.is_pinned() for weight in held for part in weight.parts)
    others = [one for name, one in model.named_parameters() if ".experts." not in name]
    assert all(one.device.type == "cuda" for one in others)
    options = {"max_new_tokens": 24, "do_sample": False}
    there = ids.to("cuda")
    for _ in range(3):
        assert torch.equal(logits(model, ids), logits(plain, ids))
        assert torch.equal(model.generate(there, **options), plain.generate(there, **options))
    total = tqcli.expert_cache_report(model).total
    assert total.hits
    assert (total.evictions > 0) == (slots == 6)


def test_bytes_made_while_loading_are_those_of_the_cpu(sources, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(
        sources["qwen3_moe"], device_map="cuda", quantization_config=tqcli.TqConfig()
    )
    model.save_pretrained(tmp_path / "x")
    saved, expected = pack.tensors_of(tmp_path / "x"), pack.pack_tensors(sources["qwen3_moe"], scale="search")
    assert all(torch.equal(saved[key], tensor) for key, tensor in expected.items())
