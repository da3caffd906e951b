"""A folder that lacks a tensor, has one too many, or one of another shape, is refused before anything is loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import pack
from support.command import succeed

from tqcli.errors import InputError
from tqcli.runtime.transformers.config import TqConfig
from tqcli.runtime.vllm.contents import PackedFiles, check_codebooks, recorded
from tqcli.runtime.vllm.online import online_formats, stream
from tqcli.runtime.vllm.record import published_section, read_record
from tqcli.runtime.vllm.rows import Rows
from tqcli.runtime.vllm.settings import check_settings, read_settings

NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture
def folder(qwen_folder, tmp_path) -> Path:
    succeed("convert", qwen_folder, tmp_path / "out", "-r", "tq3t")
    return tmp_path / "out"


def paths(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.glob("*.safetensors"))}


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that would be handed to a model."""
    files = PackedFiles(paths(folder))
    named = recorded(read_record(str(folder), None), files)
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    return dict(files.stream(TqConfig.from_dict(section), named, torch.float32))


def change(folder: Path, edit) -> None:
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def a_pair(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.endswith(".trellis_codes")).removesuffix(".trellis_codes")


def test_names_and_shapes_are_those_of_the_source(folder, qwen_folder):
    source = pack.tensors_of(qwen_folder)
    found = read(folder)
    assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in source.items()}
    packed = {name for name, one in found.items() if isinstance(one, Rows)}
    assert packed
    for name, one in found.items():
        if name not in packed:
            assert torch.equal(one, source[name])


@pytest.mark.parametrize("ending", [".trellis_codes", ".trellis_meta"])
def test_half_of_a_pair(ending, folder):
    change(folder, lambda tensors: tensors.pop(a_pair(tensors) + ending))
    with pytest.raises(InputError, match=rf"tensor `.*\{ending}` is missing"):
        read(folder)


def test_a_pair_that_is_missing(folder):
    def remove(tensors):
        base = a_pair(tensors)
        del tensors[base + ".trellis_codes"], tensors[base + ".trellis_meta"]

    change(folder, remove)
    with pytest.raises(InputError, match=r"tensor `model\.layers\.0\.mlp\..*weight` is missing"):
        read(folder)


def test_a_plain_tensor_that_is_missing(folder):
    change(folder, lambda tensors: tensors.pop(NORM))
    with pytest.raises(InputError, match=f"tensor `{NORM}` is missing"):
        read(folder)


@pytest.mark.parametrize("name", ["extra.weight", "extra.weight.trellis"])
def test_a_tensor_too_many(name, folder):
    def add(tensors):
        if name == "extra.weight":
            tensors[name] = torch.zeros(2)
            return
        base = a_pair(tensors)
        for ending in (".trellis_codes", ".trellis_meta"):
            tensors["extra.weight" + ending] = tensors[base + ending].clone()

    change(folder, add)
    with pytest.raises(InputError, match=r"tensor `extra\.weight` is one too many"):
        read(folder)


@pytest.mark.parametrize("ending", [".trellis_codes", ".trellis_meta"])
def test_rows_that_are_missing(ending, folder):
    def shorten(tensors):
        name = a_pair(tensors) + ending
        tensors[name] = tensors[name][:-1].clone()

    change(folder, shorten)
    with pytest.raises(InputError, match="does not fit"):
        read(folder)


def test_rows_that_are_missing_in_both_halves(folder):
    def shorten(tensors):
        base = a_pair(tensors)
        for ending in (".trellis_codes", ".trellis_meta"):
            tensors[base + ending] = tensors[base + ending][:-1].clone()

    change(folder, shorten)
    with pytest.raises(InputError, match="does not fit") as caught:
        read(folder)
    assert "its weight is" in caught.value.why


def test_a_plain_tensor_of_another_shape(folder):
    def widen(tensors):
        tensors[NORM] = torch.zeros(3)

    change(folder, widen)
    with pytest.raises(InputError, match=rf"tensor `{NORM}` is \[3\]"):
        read(folder)


def test_a_format_that_the_sizes_contradict(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["bits"] = 2
    config["quantization_config"]["codebooks"]["2"] = config["quantization_config"]["codebooks"]["3"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not fit"):
        read(folder)


def test_other_codebooks_beside_than_in_the_configuration(folder):
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    record = json.loads((folder / "tq_config.json").read_text())
    check_codebooks(section, record)
    record["codebooks"]["3"] = "01" * 256
    with pytest.raises(InputError, match="different codebooks"):
        check_codebooks(section, record)


def test_what_beside_the_weights_says_that_they_are_packed(folder, qwen_folder):
    assert published_section(read_record(str(folder), None), str(folder))["format_version"] == 2
    assert published_section(read_record(str(qwen_folder), None), str(qwen_folder)) is None
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    assert published_section(read_record(str(folder), None), str(folder)) is None


@pytest.mark.parametrize("recipe", ["tq3", "tq3t-sensitive"])
def test_a_plain_folder_is_planned_as_a_conversion(recipe, qwen_folder, tmp_path):
    succeed("convert", qwen_folder, tmp_path / "out", "-r", recipe)
    record = json.loads((tmp_path / "out" / "tq_config.json").read_text())["tensors"]
    formats = online_formats(qwen_folder, recipe)
    assert {name: one.bits for name, one in formats.items()} == {
        name: entry["bits"] for name, entry in record.items() if "bits" in entry
    }
    found = dict(stream(paths(qwen_folder), formats, torch.float32))
    assert {name for name, one in found.items() if isinstance(one, Rows)} == set(formats)


def test_recipes_that_vllm_has_loaders_for_are_none_for_loading(qwen_folder):
    with pytest.raises(InputError, match="recipe `fp8-dynamic` is none for loading"):
        online_formats(qwen_folder, "fp8-dynamic")


@pytest.mark.parametrize(("said", "wanted"), [("float", "float"), ("int8", "int8"), ("int16", "int16")])
def test_activations_are_as_the_environment_says(said, wanted, monkeypatch):
    monkeypatch.setenv("TQ_ACTIVATIONS", said)
    check_settings()
    assert read_settings().activations == wanted


def test_settings_that_make_no_sense(monkeypatch):
    monkeypatch.setenv("TQ_ACTIVATIONS", "int4")
    with pytest.raises(InputError, match="TQ_ACTIVATIONS is `int4`") as caught:
        check_settings()
    assert caught.value.fix == "choose `float` or `int8` or `int16`"
    monkeypatch.setenv("TQ_ACTIVATIONS", "int16")
    monkeypatch.setenv("TQ_KERNELS", "reference")
    with pytest.raises(InputError, match="cannot be `int16` here"):
        read_settings()
    monkeypatch.delenv("TQ_ACTIVATIONS")
    assert read_settings().activations == "float"
