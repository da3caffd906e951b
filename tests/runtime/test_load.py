"""`tqcli.load`."""

import json
import shutil

import pytest
import torch
from support import pack

import tqcli
from tqcli.errors import InputError
from tqcli.runtime.transformers.modules import TqLinear


@pytest.mark.parametrize("folder", ["ours", "published", "sources"])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe"])
def test_model_and_tokenizer(name, folder, request):
    model, tokenizer = tqcli.load(request.getfixturevalue(folder)[name])
    text = tokenizer("the quick brown fox", return_tensors="pt")
    output = model.generate(**text, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert output.shape[1] <= text["input_ids"].shape[1] + 4
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert any(isinstance(module, TqLinear) for module in model.modules()) == (folder != "sources")


def test_compresses_a_plain_one(sources):
    model, _ = tqcli.load(str(sources["llama"]), quantization_config=tqcli.TqConfig(bits=4))
    assert isinstance(model.model.layers[0].mlp.up_proj, TqLinear)


@pytest.fixture
def copy(ours, tmp_path):
    return shutil.copytree(ours["llama"], tmp_path / "copy")


@pytest.mark.parametrize("left", [".tq-journal.jsonl", "model-00001-of-00002.safetensors.partial"])
def test_an_unfinished_conversion(left, copy):
    (copy / left).write_bytes(b"")
    with pytest.raises(InputError, match="unfinished"):
        tqcli.load(copy)


def test_a_folder_without_config(copy):
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json"):
        tqcli.load(copy)


def test_a_folder_without_weights(copy):
    for path in copy.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match="no weights"):
        tqcli.load(copy)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "a/b/c", ""])
def test_no_such_folder(name):
    with pytest.raises(InputError, match="no such folder"):
        tqcli.load(name)


def test_a_file(copy):
    with pytest.raises(InputError, match="is a file"):
        tqcli.load(copy / "config.json")


def changed_config(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "no_such_method"}}, "no_such_method"),
        ({"quantization_config": None, "quantization": {"mode": "nvfp4"}}, "mode"),
        ({"model_type": "no_such_model"}, "cannot load"),
    ],
)
def test_checkpoints_that_transformers_cannot_read(changes, message, copy):
    changed_config(copy, **changes)
    with pytest.raises(InputError, match=message):
        tqcli.load(copy)


def test_config_is_not_json(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError):
        tqcli.load(copy)


def test_a_plain_checkpoint_whose_file_was_cut(sources, tmp_path):
    folder = shutil.copytree(sources["llama"], tmp_path / "copy")
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(InputError, match="cannot load"):
        tqcli.load(folder)


def test_a_plain_checkpoint_with_a_tensor_missing(sources, tmp_path):
    tensors = pack.tensors_of(sources["llama"])
    del tensors["model.layers.0.mlp.up_proj.weight"]
    folder = pack.write(sources["llama"], tmp_path / "x", tensors)
    with pytest.raises(InputError, match="up_proj"):
        tqcli.load(folder)


def test_no_tokenizer(copy):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError):
        tqcli.load(copy)
