"""`save_pretrained` of packed models, `dequantize`, and what other readers make of the folder."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support import pack
from support.plain_decode import reference
from transformers import AutoModelForCausalLM

from tqcli.runtime.transformers.weight import TqWeight


def load(folder, dtype=torch.float32, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("folder", ["ours", "published"])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama"])
def test_saved_and_loaded_again(name, folder, request, tmp_path, ids):
    model = load(request.getfixturevalue(folder)[name])
    model.save_pretrained(tmp_path / "x", max_shard_size="200KB")
    again = load(tmp_path / "x")
    assert torch.equal(logits(model, ids), logits(again, ids))


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama"])
def test_packed_tensors_are_saved_as_they_were(name, ours, tmp_path):
    load(ours[name], torch.bfloat16).save_pretrained(tmp_path / "x")
    before, after = pack.tensors_of(ours[name]), pack.tensors_of(tmp_path / "x")
    assert sorted(before) == sorted(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_is_written_beside_the_weights(sources, tmp_path):
    overrides = {"model.layers.0.mlp.experts.3.down_proj.weight": {"bits": 4, "group_size": 128, "seed": 42}}
    for expert in range(12):
        overrides[f"model.layers.0.mlp.experts.{expert}.down_proj.weight"] = {"bits": 4, "group_size": 128, "seed": 42}
    tensors = pack.pack_tensors(sources["qwen3_moe"], overrides=overrides)
    folder = pack.write(sources["qwen3_moe"], tmp_path / "a", tensors, section=pack.our_section(tensors=overrides))
    model = load(folder)
    model.save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    section = config["quantization_config"]
    assert config["transformers_weights"] == pack.GUARD
    assert not any("experts_implementation" in key for key in config)
    assert {**section, "tool": ""} == {**pack.our_section(tensors=overrides), "tool": ""}
    tq_config = json.loads((tmp_path / "b" / "tq_config.json").read_text())
    bases = {key.removesuffix(".tq_packed") for key in tensors if key.endswith(".tq_packed")}
    assert set(tq_config["tensors"]) == bases
    assert tq_config["compressed_layers"] == len(bases)
    assert tq_config["orig_in_dims"] == {name: 96 for name in bases if "experts" in name and "down_proj" in name}
    assert (tq_config["format"], tq_config["bits"], tq_config["group_size"]) == ("tq3_native", 3, 128)
    assert getattr(model.config, "transformers_weights", None) is None


def test_a_packed_embedding_is_saved_packed(sources, tmp_path, ids):
    def packs(tensor, shape):
        return "embed_tokens" in tensor or pack.is_packed_by_default(tensor, shape)

    tensors = pack.pack_tensors(sources["gemma4"], packs=packs)
    folder = pack.write(sources["gemma4"], tmp_path / "a", tensors, section=pack.our_section())
    model = load(folder)
    model.save_pretrained(tmp_path / "b")
    again = load(tmp_path / "b")
    assert isinstance(again.get_input_embeddings().weight, TqWeight)
    assert torch.equal(logits(model, ids), logits(again, ids))
    plain = again.dequantize()
    expected = reference(sources["gemma4"], folder, torch.float32)
    assert torch.equal(logits(plain, ids), logits(expected, ids))
    assert plain.lm_head.weight is plain.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama"])
def test_dequantize(name, sources, ours, ids, tmp_path):
    model = load(ours[name]).dequantize()
    expected = reference(sources[name], ours[name], torch.float32)
    assert not [module for module in model.modules() if isinstance(module, TqWeight)]
    assert torch.equal(logits(model, ids), logits(expected, ids))
    model.save_pretrained(tmp_path / "x")
    assert not any(".tq_" in key for key in pack.tensors_of(tmp_path / "x"))
    assert "quantization_config" not in json.loads((tmp_path / "x" / "config.json").read_text())
    assert torch.equal(logits(load(tmp_path / "x", experts_implementation="eager"), ids), logits(expected, ids))


def test_plain_models_are_saved_as_ever(sources, tmp_path):
    load(sources["llama"], torch.bfloat16).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x" / "tq_config.json").exists()
    assert "transformers_weights" not in json.loads((tmp_path / "x" / "config.json").read_text())


def test_properties(ours):
    quantizer = load(ours["llama"]).hf_quantizer
    assert quantizer.is_serializable()
    assert not quantizer.is_trainable
    assert not quantizer.is_compileable


def test_without_tqcli_it_fails_loudly(ours):
    code = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(ours['llama'])!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode != 0
    assert "REQUIRES__pip_install_tqcli" in done.stderr
