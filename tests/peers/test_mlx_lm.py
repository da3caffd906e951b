"""Whole checkpoints against mlx_lm 0.32.2 on MLX's CPU backend: its converter's bytes, and what it computes with ours.

`scale = "minmax"` must give every tensor, index and config.json of `mlx_lm.convert`; the order of the entries in
config.json's `quantization` alone differs, which no reader sees. Files differ in their padding, so tensors are
compared, not files. Side files are not: mlx_lm writes the tokenizer anew.
"""

import json
import re
import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from support import checkpoints, mlx_models
from support.command import succeed

import tqcli
from tqcli.architectures.base import find
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.layouts.originals import original_weights
from tqcli.readers.find import read
from tqcli.weights import read_elements

pytestmark = [pytest.mark.peer, pytest.mark.slow]
mx = pytest.importorskip("mlx.core")

MODELS = ["fixture", *mlx_models.RUNNABLE]
# mlx-4bit gives every router 8 bits, as mlx_lm does for Gemma 4 and Qwen but not for Mixtral; and it leaves alone what
# has no role, the projections of a second embedding.
DIFFERENT = {
    "mixtral": lambda path, module: {"group_size": 64, "bits": 8} if path.endswith(".gate") else True,
    "gemma4 small": lambda path, module: not re.search(r"per_layer_(input_gate|projection|model_projection)$", path),
}
IDS = [2, 100, 200, 300, 40, 50, 61, 77, 250, 33]


@pytest.fixture(scope="module", autouse=True)
def mlx_lm():
    """Imported here alone: that takes seconds, and lowers the number of files that this process may open."""
    with mock.patch("resource.setrlimit"):
        return pytest.importorskip("mlx_lm")


@pytest.fixture(scope="module")
def sources(tmp_path_factory, request):
    """Model -> its folder."""
    root = tmp_path_factory.mktemp("sources")
    folders = {kind: mlx_models.random_model(root / kind, kind) for kind in mlx_models.RUNNABLE}
    return folders | {"fixture": request.config.rootpath / "tests" / "fixtures" / "tiny_gemma4"}


@pytest.fixture(scope="module")
def ours(sources, tmp_path_factory):
    """(model, recipe, changes) -> a folder, converted once."""
    root = tmp_path_factory.mktemp("ours")
    made = {}

    def convert(model, recipe, *changes, shard_size="5GB"):
        key = (model, recipe, *changes, shard_size)
        if key not in made:
            made[key] = root / str(len(made))
            options = [part for change in changes for part in ("--set", change)]
            succeed("convert", sources[model], made[key], "-r", recipe, "--shard-size", shard_size, *options)
        return made[key]

    return convert


def config_i(layers):
    """The Config-I policy as a function of a module's path, for mlx_lm."""

    def predicate(path, module):
        leaf = path.rpartition(".")[2]
        layer = re.search(r"\.layers\.(\d+)\.", path)
        bits = 0
        if leaf in ("embed_tokens", "embed_tokens_per_layer", "lm_head"):
            bits = 8
        elif leaf in ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"):
            bits = 4
        elif leaf in ("gate_proj", "up_proj", "gate_up_proj"):
            bits = 2
        elif leaf == "down_proj":
            bits = 3
        if bits and layer and not 2 <= int(layer[1]) < layers - 2:
            bits = 8
        return {"group_size": 64, "bits": bits} if bits else False

    return predicate


def tensors_of(folder):
    """Name -> (dtype, shape, bytes), in all shards."""
    return {name: one for path in folder.glob("*.safetensors") for name, one in checkpoints.read_file(path).items()}


def load(path):
    return json.loads(path.read_text())


def equal(found, expected):
    """Every tensor, the index's bytes, and config.json as JSON."""
    here, there = tensors_of(found), tensors_of(expected)
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []
    index = "model.safetensors.index.json"
    assert (found / index).read_bytes() == (expected / index).read_bytes()
    assert load(found / "config.json") == load(expected / "config.json")
    assert list(load(found / "config.json")) == list(load(expected / "config.json"))


def decoded(folder, target):
    """A plain checkpoint of what a compressed one decodes to, unrounded."""
    tensors = {}
    with LocalFolder(folder) as storage:
        source = open_checkpoint(storage)
        for weight in original_weights(source, find(source.config)):
            wide = replace(weight, dtype=weight.dtype if weight.is_plain else "F32")
            tensors[weight.name] = (wide.dtype, wide.shape, read_elements(storage, wide, 0, wide.rows).tobytes())
    config = {key: value for key, value in source.config.items() if not key.startswith("quantization")}
    side = {path.name: path.read_bytes() for path in folder.glob("tokenizer*")}
    return checkpoints.write_checkpoint(target, config, tensors, side_files=side)


def modes(folder):
    section = load(folder / "config.json")["quantization"]
    return {entry["bits"] for entry in section.values() if isinstance(entry, dict)}


@pytest.mark.parametrize("model", MODELS)
def test_config_i_is_what_mlx_lm_makes_of_that_policy(model, sources, ours, tmp_path, mlx_lm):
    layers = 4 if model == "fixture" else mlx_models.LAYERS
    mlx_lm.convert(str(sources[model]), str(tmp_path / "theirs"), quantize=True, quant_predicate=config_i(layers))
    found = ours(model, "config-i", "scale=minmax")
    equal(found, tmp_path / "theirs")
    assert modes(found) == ({8} if model == "fixture" else {2, 3, 4, 8})


@pytest.mark.parametrize("model", MODELS)
def test_uniform_4_bit_is_what_mlx_lm_makes_by_itself(model, sources, ours, tmp_path, mlx_lm):
    """Where `DIFFERENT` has an entry the recipe differs on purpose, and mlx_lm is told to do the same."""
    predicate = DIFFERENT.get(model)
    mlx_lm.convert(str(sources[model]), str(tmp_path / "theirs"), quantize=True, quant_predicate=predicate)
    equal(ours(model, "mlx-4bit", "scale=minmax"), tmp_path / "theirs")


@pytest.mark.parametrize("model", ["fixture", "gemma4", "qwen3_moe"])
def test_what_mlx_lm_made_is_read_and_verified(model, sources, ours, tmp_path, mlx_lm):
    layers = 4 if model == "fixture" else mlx_models.LAYERS
    theirs = tmp_path / "theirs"
    mlx_lm.convert(str(sources[model]), str(theirs), quantize=True, quant_predicate=config_i(layers))
    found, expected = (contents(one) for one in (theirs, ours(model, "config-i")))
    assert (found.layout, found.record) == ("mlx", {})
    assert {name: (one.format.config(), one.shape) for name, one in found.packed.items()} == {
        name: (one.format.config(), one.shape) for name, one in expected.packed.items()
    }
    assert len(found.packed) > 20
    assert re.search(r"^expert_down +(mlx8 g64|bf16) ", succeed("inspect", theirs).stdout, re.MULTILINE)
    # mlx_lm writes the tokenizer anew, which a comparison with the source would name.
    shutil.copy(sources[model] / "tokenizer.json", theirs)
    shutil.copy(sources[model] / "tokenizer_config.json", theirs)
    report = json.loads(
        succeed("inspect", theirs, "--verify", "--source", sources[model], "--all", "--format", "json").stdout
    )
    assert report["packed"] == len(found.packed)
    assert report["compared"] == len(found.packed) + len(tensors_of(theirs).keys() - found.plain_names)


def contents(folder):
    with LocalFolder(folder) as storage:
        return read(open_checkpoint(storage))


@pytest.mark.parametrize("scale", ["minmax", "least-squares"])
@pytest.mark.parametrize("model", mlx_models.RUNNABLE)
def test_mlx_lm_computes_what_our_decode_computes(model, scale, ours, tmp_path):
    """In float32: weights decoded to float32 by us and run by transformers, against mlx_lm on the compressed ones."""
    folder = ours(model, "config-i", f"scale={scale}", shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    theirs = mlx_logits(folder)
    found = torch_logits(tqcli.load(decoded(folder, tmp_path / "decoded"), dtype=torch.float32)[0])
    assert np.abs(found - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert np.array_equal(found.argmax(-1), theirs.argmax(-1))
    assert len(set(found.argmax(-1).tolist())) > 1


@pytest.mark.parametrize("model", MODELS)
def test_load_computes_the_same_but_for_its_rounding_of_weights(model, ours):
    """Weights that are decoded for transformers are rounded to BF16, as all weights of the checkpoint are."""
    folder = ours(model, "config-i", "scale=minmax")
    theirs = mlx_logits(folder)
    found = torch_logits(tqcli.load(folder, dtype=torch.float32)[0])
    assert np.square(found - theirs).sum() < 0.1**2 * np.square(theirs).sum()


@pytest.mark.parametrize("model", MODELS)
def test_shards_make_no_difference(model, ours):
    one, several = (ours(model, "config-i", shard_size=size) for size in ("5GB", "100KB"))
    assert len(list(one.glob("*.safetensors"))) == 1 < len(list(several.glob("*.safetensors")))
    assert np.array_equal(mlx_logits(one), mlx_logits(several))


@pytest.mark.parametrize("recipe", ["config-i", "config-i-safe", "mlx-4bit"])
@pytest.mark.parametrize("model", ["gemma4", "qwen3_moe"])
def test_mlx_lm_generates(model, recipe, ours, mlx_lm):
    """In BF16, as people run it; experts that are not compressed, as the fixture's, MLX runs on GPUs only."""
    folder = ours(model, recipe)
    loaded, tokenizer = mlx_lm.load(str(folder))
    steps = list(mlx_lm.stream_generate(loaded, tokenizer, "the quick brown fox", max_tokens=6))
    assert 1 <= len(steps) <= 6
    assert all(0 <= step.token < 4096 for step in steps)


@pytest.mark.parametrize("scale", ["minmax", "least-squares"])
@pytest.mark.parametrize("model", ["gemma4", "qwen3_moe", "phi3"])
def test_mlx_reads_the_written_weights_as_we_do(model, scale, ours, tmp_path):
    folder = ours(model, "config-i", f"scale={scale}")
    section = load(folder / "config.json")["quantization"]
    tensors = tensors_of(folder)
    arrays = mx.load(str(folder / "model.safetensors"))
    modules = [name.removesuffix(".scales") for name in arrays if name.endswith(".scales")]
    assert len(modules) > 20
    for module in modules:
        parts = [arrays[module + suffix] for suffix in (".weight", ".scales", ".biases")]
        options = section[module]
        wide = mx.dequantize(parts[0], *(part.astype(mx.float32) for part in parts[1:]), **options, stream=mx.cpu)
        found = mlx_models.decode_stored(tensors, module)
        assert np.array(wide).reshape(found.shape).tobytes() == found.tobytes(), module
        # In BF16, MLX rounds the product and then the sum.
        theirs = np.array(mx.dequantize(*parts, **options, stream=mx.cpu).astype(mx.float32)).reshape(found.shape)
        largest = np.abs(np.array(parts[2].astype(mx.float32))).max() * 2
        assert np.abs(theirs - found).max() <= largest * 2**-8, module


def mlx_logits(folder):
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([IDS])))[0]


def torch_logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0].numpy()
