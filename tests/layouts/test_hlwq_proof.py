"""`--verify --source` proves which levels a folder was made with, and fails where it claims others."""

import json
import shutil

import pytest
from support import checkpoints
from support.command import succeed, tq
from support.hlwq_folders import TINY, tiny_sample
from support.hlwq_samples import LAYOUTS

SIDE_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    root = tmp_path_factory.mktemp("ours")
    for table in ("truncated", "unbounded", "lloyd-max"):
        succeed("convert", TINY, root / table, "-r", "hlwq-q5", "--set", f"table={table}")
    return root


def proofs(folder):
    result = succeed("inspect", folder, "--verify", "--source", TINY, "--format", "json")
    return json.loads(result.stdout)["levels"]


@pytest.mark.parametrize("table", ["truncated", "unbounded", "lloyd-max"])
def test_the_levels_of_our_folders(ours, table):
    assert proofs(ours / table) == [{"bits": 5, "claimed": table, "weights": 91, "fitting": [table], "wrong": 0}]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_levels_of_every_published_kind(layout, tmp_path):
    sample = tiny_sample(layout, tmp_path / "out")
    for name in SIDE_FILES:
        shutil.copy(TINY / name, sample.folder / name)
    table = "unbounded" if layout.startswith("polar_engine") else "truncated"
    found = proofs(sample.folder)
    assert {one["claimed"] for one in found} == {table}
    assert all(table in one["fitting"] for one in found)
    assert [one["fitting"] for one in found if one["bits"] >= 4] == [[table]] * sum(one["bits"] >= 4 for one in found)
    # Three matrices of experts each are one weight here; published programs cut or kept them.
    assert sum(one["weights"] for one in found) == (108 if layout.startswith("hlwq") else len(sample.decoded))


@pytest.mark.parametrize(
    ("made", "claimed"), [("unbounded", "truncated"), ("truncated", "lloyd-max"), ("lloyd-max", "truncated")]
)
def test_a_folder_that_claims_another_table_fails(ours, tmp_path, made, claimed):
    """The decode of `truncated` as `unbounded` is near enough to the original: nothing else would notice."""
    tensors = checkpoints.read_file(ours / made / "polar_state.safetensors")
    (tmp_path / "out").mkdir()
    checkpoints.write_file(tmp_path / "out" / "polar_state.safetensors", tensors)
    for name in ("model-extra.safetensors", "config.json", *SIDE_FILES):
        shutil.copy(ours / made / name, tmp_path / "out" / name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["quantization_config"]["tool"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    (tmp_path / "out" / "hlwq_config.json").write_text(json.dumps({"table": claimed}))
    result = tq("inspect", tmp_path / "out", "--verify", "--source", TINY)
    assert result.code == 1
    assert f"error: the 5-bit weights were not made with the levels `{claimed}`" in result.stderr
    assert f"they fit `{made}`" in result.stderr


def test_tables_that_are_too_alike_are_said_to_be(tmp_path):
    succeed("convert", TINY, tmp_path / "out", "-r", "hlwq-q2", "--set", "table=lloyd-max")
    result = succeed("inspect", tmp_path / "out", "--verify", "--source", TINY)
    assert "levels   lloyd-max, or unbounded: too alike to tell apart, in 91 2-bit weights" in result.stdout


def test_damaged_codes_are_not_taken_for_other_levels(ours, tmp_path):
    folder = shutil.copytree(ours / "truncated", tmp_path / "out")
    path = folder / "polar_state.safetensors"
    tensors = checkpoints.read_file(path)
    name = "model.language_model.layers.0.mlp.up_proj.weight__packed"
    dtype, shape, data = tensors[name]
    checkpoints.write_file(path, tensors | {name: (dtype, shape, bytes(byte ^ 0x5A for byte in data))})
    result = tq("inspect", folder, "--verify", "--source", TINY)
    assert result.code == 1
    assert f"`{name}` is not what was written" in result.stderr


def test_other_folders_have_no_levels_to_prove(tmp_path):
    succeed("convert", TINY, tmp_path / "out", "-r", "tq3")
    assert "levels" not in succeed("inspect", tmp_path / "out", "--verify", "--source", TINY).stdout
