"""Models whose experts have a cache: equal to the bit to those without, saved alike, refused where it does nothing."""

import pytest
import torch
from support import mixed, pack

import tqcli
from tqcli.errors import InputError, MachineError
from tqcli.runtime import load as load_module
from tqcli.runtime.transformers import expert_cache_model
from tqcli.runtime.transformers.expert_cache import HostWeight
from tqcli.runtime.transformers.expert_cache_model import (
    check_expert_cache,
    expert_cache_device,
    expert_cache_report,
    use_expert_cache,
)
from tqcli.runtime.transformers.expert_cache_slots import HostSlots, host_slots

MODELS = ("gemma4", "qwen3_moe")
EXPERTS = {"gemma4": 6, "qwen3_moe": 12}
LAYERS = {"gemma4": 3, "qwen3_moe": 2}


@pytest.fixture(scope="module")
def folders(sources, tmp_path_factory):
    """All native formats in one folder each; in one layer both projections of the experts are not of one format."""
    root = tmp_path_factory.mktemp("cached")
    return {name: mixed.write(sources[name], root / name, *mixed.pack_tensors(sources[name])) for name in MODELS}


def cached(folder, slots, **options):
    model, _ = tqcli.load(folder, **options)
    use_expert_cache(model, slots, host_slots)
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("slots", [1, 3, 6])
@pytest.mark.parametrize("kind", ["ours", "folders"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_bit(name, kind, slots, request, ids):
    """Prompts that need more experts than there are slots, and one token at a time."""
    folder = request.getfixturevalue(kind)[name]
    plain, model = tqcli.load(folder)[0], cached(folder, slots)
    assert torch.equal(logits(model, ids), logits(plain, ids))
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))
    report = expert_cache_report(model)
    assert report.slots == slots
    assert len(report.layers) == LAYERS[name]
    assert all(counts.misses for counts in report.layers.values())
    assert report.total.misses == sum(counts.misses for counts in report.layers.values())
    assert (report.total.evictions > 0) == (slots < EXPERTS[name])
    assert report.total.hits or slots == 1


def test_two_formats_in_one_expert(folders):
    model, _ = tqcli.load(folders["gemma4"])
    module = model.get_submodule("model.language_model.layers.0.experts")
    assert module.gate_up_proj.stored_as.format != module.down_proj.stored_as.format


def test_the_slots_are_what_is_read(folders, ids):
    """Poison in the slots shows."""

    class Poisoned(HostSlots):
        def wait(self, slot):
            for one in self.held:
                one[slot].fill_(1)

    plain, _ = tqcli.load(folders["gemma4"])
    model, _ = tqcli.load(folders["gemma4"])
    use_expert_cache(model, 6, lambda host, slots: Poisoned(host, slots, torch.device("cpu")))
    assert not torch.equal(logits(model, ids), logits(plain, ids))


def test_integers_do_not_apply(folders, ids):
    """Experts from slots are decoded, whatever the rest does."""
    model = cached(folders["qwen3_moe"], 6)
    expected = logits(model, ids[:1, :2])
    for weight in (module for module in model.modules() if isinstance(module, HostWeight)):
        weight.activations = "int16"
    assert torch.equal(logits(model, ids[:1, :2]), expected)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_what_goes_in(name, folders, ids):
    """As without: what is decoded from a slot is no part of it."""
    found = []
    for model in (tqcli.load(folders[name])[0], cached(folders[name], 2)):
        embedded = model.get_input_embeddings()(ids[:1, :9]).detach().requires_grad_()
        model(inputs_embeds=embedded).logits.float().square().mean().backward()
        found.append(embedded.grad)
    assert found[0].abs().max() > 0
    assert torch.equal(*found)


@pytest.mark.parametrize("name", MODELS)
def test_saved_alike(name, folders, tmp_path, ids):
    plain, model = tqcli.load(folders[name])[0], cached(folders[name], 6)
    logits(model, ids)
    for each, folder in ((plain, "plain"), (model, "cached")):
        each.save_pretrained(tmp_path / folder)
    before, after = pack.tensors_of(tmp_path / "plain"), pack.tensors_of(tmp_path / "cached")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], tensor) for key, tensor in after.items())


def test_no_longer_packed(folders, ids):
    model = cached(folders["qwen3_moe"], 6)
    expected = logits(model, ids)
    model.dequantize()
    assert not any(isinstance(module, HostWeight) for module in model.modules())
    assert torch.equal(logits(model, ids), expected)


def test_moves(folders, ids):
    model = cached(folders["qwen3_moe"], 6, dtype=torch.float32)
    expected = logits(model, ids)
    assert torch.equal(logits(model.to("cpu"), ids), expected)
    weight = model.model.layers[0].mlp.experts.gate_up_proj
    assert weight.to(torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(InputError, match="cannot move to `meta`"):
        model.to("meta")


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_other_functions_cannot_read_them(implementation, folders, ids):
    model = cached(folders["qwen3_moe"], 6)
    model.set_experts_implementation(implementation)
    with pytest.raises(InputError, match="experts with a cache cannot be read"):
        logits(model, ids)


def test_not_twice(folders):
    model = cached(folders["qwen3_moe"], 6)
    with pytest.raises(InputError, match="already"):
        use_expert_cache(model, 6, host_slots)


def test_models_that_have_none(ours, sources, ids):
    model, _ = tqcli.load(ours["llama"])
    with pytest.raises(InputError, match="no expert cache"):
        expert_cache_report(model)
    with pytest.raises(InputError, match="no experts"):
        use_expert_cache(model, 6, host_slots)
    plain, _ = tqcli.load(sources["qwen3_moe"])
    with pytest.raises(InputError, match=r"`model.layers.0.mlp.experts.gate_up_proj` is not packed"):
        use_expert_cache(plain, 6, host_slots)


def test_one_layer_that_is_not_packed(sources, tmp_path):
    def choose(name, shape):
        return None if "layers.1.mlp.experts" in name and "down_proj" in name else mixed.choose(name, shape)

    source = sources["qwen3_moe"]
    model, _ = tqcli.load(mixed.write(source, tmp_path / "x", *mixed.pack_tensors(source, choose)))
    with pytest.raises(InputError, match=r"layers.1.mlp.experts.down_proj` is not packed"):
        use_expert_cache(model, 6, host_slots)
    assert not any(isinstance(module, HostWeight) for module in model.modules())


@pytest.mark.parametrize(
    ("slots", "said"),
    [(5, "too little"), (0, "too little"), (-1, "too little"), (13, "too much"), (True, "a number"), ("6", "a number"),
     (6.0, "a number")],
)  # fmt: skip
def test_numbers_that_make_no_sense(slots, said, ours):
    config = tqcli.load(ours["qwen3_moe"])[0].config
    with pytest.raises(InputError, match=said):
        check_expert_cache(config, slots)
    for fits in (6, 12):
        check_expert_cache(config, fits)


def test_config_of_gemma(ours):
    config = tqcli.load(ours["gemma4"])[0].config
    check_expert_cache(config, 6)
    config.text_config.top_k_experts = 4
    with pytest.raises(InputError, match="too few experts"):
        check_expert_cache(config, 6)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_config_without_experts(name, ours):
    with pytest.raises(InputError, match="no experts"):
        check_expert_cache(tqcli.load(ours[name])[0].config, 6)


@pytest.mark.parametrize(
    ("device_map", "said"),
    [(None, "nothing on the CPU"), ("cpu", "nothing on the CPU"), ({"": "cpu"}, "nothing on the CPU"),
     ("auto", "one CUDA device"), ("disk", "one CUDA device"), ({"model": 0, "lm_head": 1}, "one CUDA device"),
     ("mps", "does not work on `mps`")],
)  # fmt: skip
def test_devices_that_it_is_not_for(device_map, said, ours):
    with pytest.raises(InputError, match=said):
        tqcli.load(ours["qwen3_moe"], device_map=device_map, expert_cache=6)


def test_devices_that_it_is_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    for device_map in ("cuda", {"": "cuda"}, torch.device("cuda")):
        assert expert_cache_device(device_map) == torch.device("cuda", 2)
    for device_map in ("cuda:1", 1, {"": 1}, {"": "cuda:1"}):
        assert expert_cache_device(device_map) == torch.device("cuda", 1)


def test_no_cuda_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="CUDA"):
        expert_cache_device("cuda")


@pytest.fixture
def pretended(monkeypatch):
    """Host memory is the device; holds what was asked to be locked."""
    locked = []

    def lock(tensor):
        locked.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(load_module, "expert_cache_device", lambda device_map: torch.device("cpu"))
    monkeypatch.setattr(expert_cache_model, "cuda_slots", lambda device: host_slots)
    monkeypatch.setattr(expert_cache_model, "page_locked", lock)
    return locked


@pytest.mark.parametrize("name", MODELS)
def test_load(name, folders, pretended, ids):
    plain, _ = tqcli.load(folders[name])
    model, _ = tqcli.load(folders[name], device_map="cuda", expert_cache=6)
    assert torch.equal(logits(model, ids), logits(plain, ids))
    assert tqcli.expert_cache_report(model).slots == 6
    # Codes and scales of two projections a layer, and nothing else.
    assert len(pretended) == 4 * LAYERS[name]
    with pytest.raises(InputError, match="too little"):
        tqcli.load(folders[name], device_map="cuda", expert_cache=5)


def test_load_what_has_no_packed_experts(sources, ours, pretended):
    with pytest.raises(InputError, match="is not packed"):
        tqcli.load(sources["qwen3_moe"], device_map="cuda", expert_cache=6)
    with pytest.raises(InputError, match="no experts"):
        tqcli.load(ours["llama"], device_map="cuda", expert_cache=6)


def test_compressed_while_loading(sources, pretended, ids):
    config = tqcli.TqConfig(bits=4)
    plain, _ = tqcli.load(sources["qwen3_moe"], quantization_config=config)
    model, _ = tqcli.load(sources["qwen3_moe"], quantization_config=config, device_map="cuda", expert_cache=6)
    assert torch.equal(logits(model, ids), logits(plain, ids))


def test_a_device_that_is_full(ours, monkeypatch, pretended):
    def full(device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(expert_cache_model, "cuda_slots", full)
    with pytest.raises(MachineError, match="does not fit"):
        tqcli.load(ours["qwen3_moe"], device_map="cuda", expert_cache=6)
