"""Folders that `tq convert` writes with several formats: loaded as they decode, made while loading, and saved again."""

import json
from pathlib import Path

import pytest
import torch
from support import mixed, pack
from support.command import succeed
from transformers import AutoModelForCausalLM

import tqcli
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform
from tqcli.readers.find import read
from tqcli.runtime.transformers.modules import TqEmbedding

MODELS = ("gemma4", "qwen3_moe", "llama", "qwen3")


@pytest.fixture(scope="module")
def converted(sources, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("converted")
    for name in MODELS:
        succeed("convert", sources[name], root / name, "-r", "tq3t", "--set", "candidates=1")
    return {name: root / name for name in MODELS}


def formats_of(folder):
    with LocalFolder(folder) as storage:
        return {name: packed.format for name, packed in read(open_checkpoint(storage)).packed.items()}


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_decoded_weights(name, sources, converted, ids):
    folder = converted[name]
    formats = formats_of(folder)
    assert {type(stored_as) for stored_as in formats.values()} == {Trellis, Uniform}
    model, _ = tqcli.load(folder, dtype=torch.float32)
    expected = mixed.reference(sources[name], pack.tensors_of(folder), formats, torch.float32)
    assert isinstance(model.get_input_embeddings(), TqEmbedding)
    assert torch.equal(logits(model, ids), logits(expected, ids))


@pytest.mark.parametrize("name", MODELS)
def test_compressed_while_loading_it_is_the_same_folder(name, sources, converted, tmp_path):
    config = tqcli.TqConfig(format="trellis", bits=3, candidates=1, embeddings=8)
    AutoModelForCausalLM.from_pretrained(sources[name], quantization_config=config).save_pretrained(tmp_path / "x")
    expected, saved = pack.tensors_of(converted[name]), pack.tensors_of(tmp_path / "x")
    assert sorted(saved) == sorted(expected)
    assert all(torch.equal(saved[key], tensor) for key, tensor in expected.items())
    sections = [
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (converted[name], tmp_path / "x")
    ]
    assert sections[0] == sections[1]


@pytest.mark.parametrize("name", MODELS)
def test_our_reader_reads_what_is_saved(name, converted, tmp_path):
    AutoModelForCausalLM.from_pretrained(converted[name]).save_pretrained(tmp_path / "x")
    assert formats_of(tmp_path / "x") == formats_of(converted[name])
    succeed("inspect", tmp_path / "x")
