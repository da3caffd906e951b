"""HLWQ folders in transformers: every kind decodes to its values, answers like the original, and nothing is made up."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import checkpoints
from support.command import succeed
from support.hlwq_folders import TINY, WHOLE, bf16, tiny_sample, values_of
from support.hlwq_samples import LAYOUTS
from transformers import AutoModelForCausalLM

import tqcli
from tqcli.errors import InputError

Q = "model.language_model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    return {layout: tiny_sample(layout, root / layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    root = tmp_path_factory.mktemp("ours")
    for name in ("hlwq-q5", "hlwq-q8"):
        succeed("convert", TINY, root / name, "-r", name)
    succeed("convert", root / "hlwq-q5", root / "freed", "-r", "bf16")
    return root


@pytest.fixture(scope="module")
def ids():
    return torch.arange(2, 66)[None]


@pytest.fixture(scope="module")
def truth(ids):
    return log_probabilities(tqcli.load(TINY)[0], ids)


def log_probabilities(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=ids).logits.float(), -1)


def divergence(truth, model, ids):
    found = log_probabilities(model, ids)
    return float((truth.exp() * (truth - found)).sum(-1).mean())


def same(model, expected):
    """Every tensor of the model is the expected one; the head is tied to the embedding."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("lm_head")}
    assert state.keys() == expected.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value.float().numpy(), expected[name], name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_kind_loads_as_what_it_decodes_to(samples, layout, truth, ids):
    sample = samples[layout]
    if layout in WHOLE:
        shutil.copy(TINY / "tokenizer.json", sample.folder)
    model, tokenizer = tqcli.load(sample.folder, base_model=None if layout in WHOLE else TINY)
    decoded = {name: bf16(values) for name, values in sample.decoded.items()}
    same(model, values_of(TINY) | {name: bf16(values) for name, values in sample.plain.items()} | decoded)
    assert tokenizer("a").input_ids
    # Some have even the embedding at 5 or 3 bits.
    assert divergence(truth, model, ids) < 0.05


@pytest.mark.parametrize(("name", "limit"), [("hlwq-q5", 0.01), ("hlwq-q8", 0.002)])
def test_ours_loads_with_transformers_and_answers_like_the_original(ours, name, limit, truth, ids):
    model = AutoModelForCausalLM.from_pretrained(ours / name, dtype="auto")
    assert divergence(truth, model, ids) < limit
    assert getattr(model.config, "quantization_config", None) is None
    assert getattr(model.config, "transformers_weights", None) is None
    if name == "hlwq-q5":
        same(model, values_of(ours / "freed"))
        same(tqcli.load(ours / name)[0], values_of(ours / "freed"))


@pytest.mark.parametrize("layout", ["hlwq", "hlwq_underscored", "polar_engine_v5"])
def test_transformers_loads_them_with_a_base(samples, layout):
    loaded = AutoModelForCausalLM.from_pretrained(samples[layout].folder, dtype="auto", base_model=str(TINY))
    name, values = next(iter(samples[layout].decoded.items()))
    np.testing.assert_array_equal(loaded.state_dict()[name].float().numpy(), bf16(values))


@pytest.mark.parametrize("name", ["hlwq_config.json", "config.json"])
def test_a_folder_is_known_by_either_file(samples, tmp_path, name):
    folder = shutil.copytree(samples["hlwq"].folder, tmp_path / "out")
    (folder / name).unlink()
    model, _ = tqcli.load(folder, base_model=TINY)
    values = samples["hlwq"].decoded[Q]
    np.testing.assert_array_equal(model.state_dict()[Q].float().numpy(), bf16(values))
    with pytest.raises(InputError, match=r"base_model="):
        tqcli.load(folder)


@pytest.mark.parametrize("load", [tqcli.load, AutoModelForCausalLM.from_pretrained])
def test_without_its_base_a_folder_of_compressed_weights_alone_is_refused(samples, load):
    with pytest.raises(InputError, match="does not hold every tensor of its model") as raised:
        load(samples["hlwq"].folder)
    assert "base_model=" in str(raised.value)


@pytest.mark.parametrize("layout", ["multi", "unpacked"])
def test_without_its_base_a_folder_of_one_width_is_refused(samples, layout):
    with pytest.raises(InputError, match=r"has no `config.json`") as raised:
        tqcli.load(samples[layout].folder)
    assert "base_model=" in str(raised.value)


@pytest.mark.parametrize("ending", ["__packed", "__norms", "__meta", ""])
@pytest.mark.parametrize("load", [tqcli.load, AutoModelForCausalLM.from_pretrained])
def test_a_tensor_that_is_missing_is_named(ours, tmp_path, ending, load):
    folder = shutil.copytree(ours / "hlwq-q5", tmp_path / "out")
    path = folder / "polar_state.safetensors"
    tensors = checkpoints.read_file(path)
    gone = {name for name in tensors if name.startswith(Q) and name.endswith(ending)}
    assert len(gone) == (1 if ending else 3)
    checkpoints.write_file(path, {name: one for name, one in tensors.items() if name not in gone})
    with pytest.raises(InputError, match=Q):
        load(folder)


def test_a_kept_tensor_that_is_missing_is_named(ours, tmp_path):
    folder = shutil.copytree(ours / "hlwq-q5", tmp_path / "out")
    path = folder / "model-extra.safetensors"
    tensors = checkpoints.read_file(path)
    name = "model.language_model.layers.1.router.scale"
    del tensors[name]
    checkpoints.write_file(path, tensors)
    with pytest.raises(InputError, match=name):
        tqcli.load(folder)


def test_an_expert_that_is_missing_is_named(ours, tmp_path):
    folder = shutil.copytree(ours / "hlwq-q5", tmp_path / "out")
    path = folder / "polar_state.safetensors"
    tensors = checkpoints.read_file(path)
    gone = "model.language_model.layers.3.experts.gate_up_proj_e7__"
    checkpoints.write_file(path, {name: one for name, one in tensors.items() if not name.startswith(gone)})
    with pytest.raises(InputError, match=r"experts\.gate_up_proj` has no expert 7"):
        tqcli.load(folder)


def test_a_base_that_is_none_is_refused(samples, ours):
    with pytest.raises(InputError, match="is compressed itself"):
        tqcli.load(samples["hlwq"].folder, base_model=ours / "hlwq-q5")
    with pytest.raises(InputError, match="needs no base model"):
        tqcli.load(TINY, base_model=TINY)


@pytest.mark.slow
@pytest.mark.parametrize("guard", [True, False])
def test_stock_transformers_stops(ours, tmp_path, guard):
    """Without the plug-in it would warn of the unknown method and go on with random weights."""
    folder = shutil.copytree(ours / "hlwq-q5", tmp_path / "out")
    if not guard:
        config = json.loads((folder / "config.json").read_text())
        assert config.pop("transformers_weights").startswith("REQUIRES__pip_install_tqcli")
        (folder / "config.json").write_text(json.dumps(config))
    code = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({str(folder)!r}); print('loaded')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "loaded" not in run.stdout
    assert ("REQUIRES__pip_install_tqcli" in run.stderr) == guard
