"""Folders with trellis and uniform weights read: what the folder says holds, and a folder that lies is refused."""

import json
import shutil
from pathlib import Path

import pytest
from support import checkpoints
from support.command import succeed, tq

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError
from tqcli.packed import decode_rows
from tqcli.readers.find import read

SOURCE = Path(__file__).parents[1] / "fixtures" / "tiny_gemma4"
TRELLIS = "model.language_model.layers.0.self_attn.q_proj.weight"
UNIFORM = "model.language_model.embed_tokens.weight"


def contents(folder):
    with LocalFolder(folder) as storage:
        return read(open_checkpoint(storage))


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "out"
    succeed("convert", SOURCE, folder, "-r", "tq3t", "--set", "candidates=1")
    return folder


@pytest.fixture
def folder(converted, tmp_path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "out"))


def edit(folder: Path, file: str, change) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def edit_both(folder: Path, change) -> None:
    """In tq_config.json, and in the section of config.json."""
    edit(folder, "tq_config.json", change)
    edit(folder, "config.json", lambda config: change(config["quantization_config"]))


def test_formats_shapes_and_dtypes(converted):
    found = contents(converted)
    assert found.layout == "native"
    assert (found.packed[TRELLIS].format.label, found.packed[UNIFORM].format.label) == ("trellis3", "uniform8 g128")
    assert found.packed[UNIFORM].shape == (4096, 128)
    experts = found.packed["model.language_model.layers.0.experts.down_proj"]
    assert experts.shape == (8, 128, 96)
    assert experts.format.label == "trellis3"


def test_the_record_says_what_a_stranger_needs(converted):
    record = json.loads((converted / "tq_config.json").read_text())
    section = json.loads((converted / "config.json").read_text())["quantization_config"]
    assert (record["format"], record["format_version"], section["format_version"]) == ("tq_native", 2, 2)
    assert not {"bits", "group_size", "quantizer_seed"} & set(record)
    assert list(record["codebooks"]) == list(section["codebooks"]) == ["3"]
    assert len(bytes.fromhex(section["codebooks"]["3"])) == 256
    assert section["tensors"][UNIFORM] == {"format": "uniform", "bits": 8, "group_size": 128}
    assert {key: section[key] for key in ("format", "bits", "rotation", "seed")} == {
        "format": "trellis",
        "bits": 3,
        "rotation": "hadamard",
        "seed": 42,
    }


def test_config_json_alone_is_enough(folder):
    before = contents(folder)
    (folder / "tq_config.json").unlink()
    after = contents(folder)
    assert {name: one.format for name, one in after.packed.items()} == {
        name: one.format for name, one in before.packed.items()
    }


def test_a_codebook_of_another_writer_is_taken_from_the_folder(folder):
    def negate(content):
        levels = bytes.fromhex(content["codebooks"]["3"])
        content["codebooks"]["3"] = bytes(-level & 255 for level in levels).hex()

    with LocalFolder(folder) as storage:
        before = decode_rows(storage, read(open_checkpoint(storage)).packed[TRELLIS], 0, 4)
    edit_both(folder, negate)
    with LocalFolder(folder) as storage:
        after = decode_rows(storage, read(open_checkpoint(storage)).packed[TRELLIS], 0, 4)
    assert (after == -before).all()
    assert before.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("codebooks"), "has no codebook"),
        (lambda content: content["codebooks"].pop("3"), "has no codebook"),
        (lambda content: content["codebooks"].update({"3": "00"}), "codebook"),
        (lambda content: content["codebooks"].update({"3": 7}), "codebook"),
    ],
)
def test_a_folder_without_its_codebook(folder, change, message):
    edit_both(folder, change)
    with pytest.raises(InputError) as caught:
        contents(folder)
    assert message in f"{caught.value.what} {caught.value.why}"


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (TRELLIS, {"bits": 4}),
        (TRELLIS, {"bits": "3"}),
        (TRELLIS, {"format": "uniform"}),
        (TRELLIS, {"format": "sparse"}),
        (TRELLIS, {"rotation": "fourier"}),
        (TRELLIS, {"seed": -1}),
        (TRELLIS, {"shape": [128, 64]}),
        (UNIFORM, {"bits": 4}),
        (UNIFORM, {"group_size": 64}),
        (UNIFORM, {"format": "tq"}),
    ],
)
def test_a_record_that_does_not_fit_the_tensors(folder, name, keys):
    edit(folder, "tq_config.json", lambda record: record["tensors"][name].update(keys))
    with pytest.raises(InputError, match=r"q_proj|embed_tokens"):
        contents(folder)


@pytest.mark.parametrize("ending", [".trellis_codes", ".trellis_meta", ".uniform_codes", ".uniform_scales"])
def test_half_a_pair(folder, ending):
    file = next(path for path in sorted(folder.glob("*.safetensors")) if has(path, ending))
    tensors = checkpoints.read_file(file)
    del tensors[next(name for name in tensors if name.endswith(ending))]
    checkpoints.write_file(file, tensors)
    with pytest.raises(InputError, match=ending):
        contents(folder)


def has(path: Path, ending: str) -> bool:
    return any(name.endswith(ending) for name in checkpoints.read_file(path))


@pytest.mark.parametrize(
    ("name", "keys"), [(TRELLIS, {"format": "trellis", "bits": 3, "rotation": "none", "seed": 42}), (UNIFORM, None)]
)
def test_verify_sees_a_word_changed_in_config_json(folder, name, keys):
    def change(config):
        config["quantization_config"]["tensors"][name] = keys or {"format": "uniform", "bits": 8, "group_size": 64}

    edit(folder, "config.json", change)
    result = tq("inspect", folder, "--verify")
    assert result.code == 1
    assert name in result.stdout + result.stderr


def test_verify_sees_another_codebook_in_config_json(folder):
    def change(config):
        books = config["quantization_config"]["codebooks"]
        books["3"] = "7f" + books["3"][2:]

    edit(folder, "config.json", change)
    assert tq("inspect", folder, "--verify").code == 1
