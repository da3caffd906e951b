"""HLWQ folders of every kind made plain again by `-r bf16`, with their base model where they need it."""

import json
import shutil

import numpy as np
import pytest
from support import checkpoints
from support.command import hashes, succeed, tq
from support.hlwq_folders import TINY, WHOLE, bf16, tiny_sample, values_of
from support.hlwq_samples import LAYOUTS

from tqcli import convert as converting


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    return {layout: tiny_sample(layout, root / layout) for layout in LAYOUTS}


def base_of(layout):
    return () if layout in WHOLE else ("--base", TINY)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_becomes_the_model_again(samples, layout, tmp_path):
    sample = samples[layout]
    result = succeed("convert", sample.folder, tmp_path / "out", "-r", "bf16", *base_of(layout))
    decoded = {name: bf16(values) for name, values in sample.decoded.items()}
    expected = values_of(TINY) | {name: bf16(values) for name, values in sample.plain.items()} | decoded
    found = values_of(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if name in sample.plain:
            values = sample.plain[name]  # polar_engine keeps the rest as F16
        np.testing.assert_array_equal(found[name], values)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name in ("hlwq_config.json", "polar_config.json")]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization_config", "transformers_weights"} & config.keys()
    if layout not in WHOLE:
        tensors = {"hlwq": 392, "hlwq_underscored": 392, "multi": 202, "unpacked": 161}[layout]
        taken = 68 if layout.startswith("hlwq") else 1
        assert f"note: {taken} of {tensors} tensors are taken from `{TINY}`" in result.stderr
        assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    assert "120 tensors against the source" in result.stdout


def test_the_plan_alone_names_the_base_too(samples):
    result = succeed("convert", samples["hlwq"].folder, "-r", "bf16", "--base", TINY, "--dry-run")
    assert "68 of 392 tensors are taken from" in result.stderr


def test_without_the_base_it_is_asked_for(samples, tmp_path):
    result = tq("convert", samples["hlwq"].folder, tmp_path / "out", "-r", "bf16")
    assert result.code == 2
    assert "error: " in result.stderr
    assert "fix: --base MODEL" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compressing_again_is_refused(samples, layout, tmp_path):
    result = tq("convert", samples[layout].folder, tmp_path / "out", "-r", "tq3", *base_of(layout))
    assert result.code == 2
    assert "is compressed already" in result.stderr


@pytest.mark.parametrize("recipe", ["tq3", "hlwq-q4", "w4a16", "mlx-4bit"])
def test_compressing_again_on_demand(samples, recipe, tmp_path):
    succeed("convert", samples["hlwq"].folder, tmp_path / "out", "-r", recipe, "--base", TINY, "--from-quantized")
    succeed("inspect", tmp_path / "out", "--verify")


def test_an_interrupted_run_goes_on(samples, tmp_path, monkeypatch):
    arguments = (
        "convert",
        samples["hlwq"].folder,
        tmp_path / "out",
        "-r",
        "bf16",
        "--base",
        TINY,
        "--shard-size",
        "1MB",
    )
    whole = (*arguments[:2], tmp_path / "whole", *arguments[3:])
    succeed(*whole)
    original = converting._write_shard

    def stops(plan, shard, *rest):
        if shard.name.startswith("model-00003"):
            raise KeyboardInterrupt
        return original(plan, shard, *rest)

    monkeypatch.setattr(converting, "_write_shard", stops)
    assert tq(*arguments).code == 130
    monkeypatch.setattr(converting, "_write_shard", original)
    succeed(*arguments)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.parametrize("where", ["sample", "base"])
def test_neither_source_is_written_to(samples, tmp_path, where):
    base = shutil.copytree(TINY, tmp_path / "base")
    sample = shutil.copytree(samples["hlwq"].folder, tmp_path / "sample")
    before = hashes(base) | hashes(sample)
    result = tq("convert", sample, tmp_path / where / "out", "-r", "bf16", "--base", base)
    assert result.code == 2
    assert "lies inside" in result.stderr
    assert hashes(base) | hashes(sample) == before


def test_a_matrix_that_neither_has_is_missing_in_what_is_written(samples, tmp_path):
    """The base's own list says what a model holds: a base that lacks a tensor is another model."""
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    base = shutil.copytree(TINY, tmp_path / "base")
    for path in base.glob("*.safetensors"):
        tensors = checkpoints.read_file(path)
        tensors.pop(name, None)
        checkpoints.write_file(path, tensors)
    (base / "model.safetensors.index.json").unlink()
    result = tq("convert", samples["hlwq"].folder, tmp_path / "out", "-r", "bf16", "--base", base)
    assert result.code == 2
    assert f"`{name}` is not in the base model" in result.stderr
