"""What is compressed already is not compressed again by mistake, and the message says what to take instead."""

import json
import shutil
from pathlib import Path

import pytest
from support import checkpoints
from support.command import hashes, succeed, tq

SOURCES = {
    "fp8": ("-r", "fp8-dynamic"),
    "fp8-block": ("-r", "fp8-block"),
    "int4": ("-r", "w4a16", "--set", "group_size=32"),
    "mxfp4": ("-r", "mxfp4"),
    "nvfp4": ("-r", "nvfp4a16"),
    "tq": ("-r", "tq3"),
    "mlx": ("-r", "mlx-4bit", "--set", "group_size=32"),
    "hlwq": ("-r", "hlwq-q4"),
}
TARGETS = {
    "tq4": ("-r", "tq4"),
    "fp8-dynamic": ("-r", "fp8-dynamic"),
    "fp8-block": ("-r", "fp8-block"),
    "w4a16": ("-r", "w4a16", "--set", "group_size=32", "--set", "scale=absmax"),
    "nvfp4a16": ("-r", "nvfp4a16"),
    "mlx-4bit": ("-r", "mlx-4bit", "--set", "group_size=32"),
}


@pytest.fixture(scope="module")
def folders(gemma_folder, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("compressed")
    for name, options in SOURCES.items():
        succeed("convert", gemma_folder, root / name, *options)
    return {name: root / name for name in SOURCES}


@pytest.fixture
def foreign(folders, here):
    """A function: the folder as another tool would have left it, with a model card of its own."""

    def copy(name: str, card: str = "", newline: str = "\n") -> None:
        shutil.copytree(folders[name], here / "model")
        for ours in ("tq_config.json", "tq_recipe.toml"):
            (here / "model" / ours).unlink()
        (here / "model" / "README.md").write_bytes(card.replace("\n", newline).encode())

    return copy


def tensors_of(folder: Path) -> dict[str, checkpoints.Tensor]:
    return {n: one for path in folder.glob("*.safetensors") for n, one in checkpoints.read_file(path).items()}


def refused(*arguments: object) -> list[str]:
    result = tq("convert", *arguments)
    assert (result.code, result.stdout) == (2, "")
    return result.stderr.splitlines()


@pytest.mark.parametrize("name", SOURCES)
def test_refused_with_the_name_of_what_it_was_made_from(name, folders, tmp_path):
    lines = refused(folders[name], tmp_path / "out", "-r", "fp8-dynamic")
    assert lines[0] == f"error: `{folders[name]}` is compressed already"
    assert lines[1].startswith("  why: `quantization_config` in config.json: ")
    assert lines[2] == "  fix: name the original, `gemma`, or --from-quantized"
    assert not (tmp_path / "out").exists()


CARDS = {
    "plain": "base_model: google/gemma-4-26b",
    "quoted": 'base_model: "google/gemma-4-26b"',
    "apostrophes": "base_model: 'google/gemma-4-26b'",
    "a comment": "base_model: google/gemma-4-26b  # the original",
    "a list": "base_model:\n- google/gemma-4-26b\n- another/model",
    "an indented list": "base_model:\n  - google/gemma-4-26b",
    "a quoted list": 'base_model:\n    - "google/gemma-4-26b"',
    "brackets": "base_model: [google/gemma-4-26b, another/model]",
    "quoted in brackets": "base_model: [ 'google/gemma-4-26b' ]",
    "after other keys": "license: mit\ntags:\n- base_model:x\nbase_model: google/gemma-4-26b\nlanguage: en",
}
NOT_SAID = {
    "nothing": "license: mit",
    "an empty value": "base_model:\nlicense: mit",
    "null": "base_model: null",
    "a tilde": "base_model: ~",
    "an empty list": "base_model: []",
    "another key": "base_model_relation: quantized\nmy_base_model: a/b",
}


def card(lines: str, text: str = "# A model\nbase_model: not/here\n") -> str:
    return f"---\n{lines}\n---\n{text}"


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("form", CARDS)
def test_the_base_model_of_a_model_card(form, newline, foreign):
    foreign("fp8", card(CARDS[form]), newline)
    assert refused("model", "out")[-1] == "  fix: name the original, `google/gemma-4-26b`, or --from-quantized"


@pytest.mark.parametrize("form", NOT_SAID)
def test_a_model_card_that_does_not_say(form, foreign):
    foreign("fp8", card(NOT_SAID[form]))
    assert refused("model", "out")[-1] == "  fix: name the original BF16 checkpoint, or --from-quantized"


@pytest.mark.parametrize("text", ["", "# A model\nbase_model: not/here\n", "---\nbase_model", "\xff\xfe", "---"])
def test_a_model_card_without_front_matter(text, foreign):
    foreign("int4", text)
    assert refused("model", "out")[-1] == "  fix: name the original BF16 checkpoint, or --from-quantized"


@pytest.mark.parametrize("name", SOURCES)
def test_folders_of_others_are_refused_too(name, foreign):
    foreign(name, card("base_model: a/b"))
    lines = refused("model", "out", "-r", "tq4")
    assert lines[0] == "error: `model` is compressed already"
    assert lines[2] == "  fix: name the original, `a/b`, or --from-quantized"


@pytest.mark.parametrize("name", ["fp8", "int4", "mxfp4", "nvfp4", "tq"])
def test_tensors_show_it_where_config_does_not(name, foreign):
    """A config.json of the original beside compressed weights."""
    foreign(name)
    path = Path("model/config.json")
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    lines = refused("model", "out", "-r", "fp8-dynamic")
    assert lines[0] == "error: `model` is compressed already"
    assert ".weight" in lines[1] or ".tq_" in lines[1]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SOURCES)
def test_the_same_as_freeing_it_first(name, target, folders, tmp_path):
    """Two roundings in one step, or in two: the same bytes, whatever the source was."""
    options = TARGETS[target]
    succeed("convert", folders[name], tmp_path / "at once", *options, "--from-quantized")
    succeed("convert", folders[name], tmp_path / "free", "-r", "bf16")
    succeed("convert", tmp_path / "free", tmp_path / "after", *options)
    at_once, after = tensors_of(tmp_path / "at once"), tensors_of(tmp_path / "after")
    assert at_once == after
    assert any(dtype in ("U8", "I32", "U32", "F8_E4M3") for dtype, _, _ in at_once.values())
    first, second = hashes(tmp_path / "at once"), hashes(tmp_path / "after")
    assert first["config.json"] == second["config.json"]
    assert first["tokenizer.json"] == second["tokenizer.json"]


def test_pieces_and_workers_do_not_matter(folders, tmp_path, monkeypatch):
    from functools import partial

    from tqcli import convert as converting

    succeed("convert", folders["fp8-block"], tmp_path / "a", *TARGETS["nvfp4a16"], "--from-quantized")
    small = partial(converting.pieces, piece_bytes=3000)
    monkeypatch.setattr(converting, "pieces", lambda decision, **_: small(decision))
    succeed("convert", folders["fp8-block"], tmp_path / "b", *TARGETS["nvfp4a16"], "--from-quantized", "--workers", 3)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_the_record_tells_of_the_compressed_source(folders, tmp_path):
    succeed("convert", folders["int4"], tmp_path / "out", "-r", "tq4", "--from-quantized")
    record = json.loads((tmp_path / "out" / "tq_config.json").read_text())
    assert record["original_model"] == "gemma"
    assert record["layout"] == "native"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "turboquant"
