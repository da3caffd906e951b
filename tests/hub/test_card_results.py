"""Measurements belong to bytes: a changed weight, shape or config ends them; strangers' rows are checked."""

import json

import pytest
from support import checkpoints
from support.command import succeed
from support.fake_hub_pushes import copy_of

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError
from tqcli.hub.results import RESULTS_NAME, fingerprint, read_results

HERE = f"tensors:{'a' * 64}"
ROW = {
    "weights": HERE, "metric": "m", "value": 1.5, "unit": "", "command": "c", "machine": "x", "versions": {"a": "1"},
    "date": "2026-11-25T10:00:00Z",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    checkpoints.gemma(folder / "model")
    succeed("convert", folder / "model", folder / "out", "--format", "quiet")
    return folder / "out"


def opened(folder):
    return open_checkpoint(LocalFolder(folder))


def rows(folder, text):
    (folder / RESULTS_NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_results(opened(folder), HERE)


def test_a_copy_has_the_same_fingerprint(made, tmp_path):
    assert fingerprint(opened(made)) == fingerprint(opened(copy_of(made, tmp_path / "copy")))
    assert fingerprint(opened(made)).startswith("tensors:")


def test_side_files_and_how_it_is_cut_do_not_matter(made, tmp_path):
    succeed("convert", made.parent / "model", tmp_path / "cut", "--shard-size", "100KB", "--format", "quiet")
    (tmp_path / "cut" / "tokenizer.json").write_text("{}")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert fingerprint(opened(made)) == fingerprint(opened(tmp_path / "cut"))


def test_weights_and_config_do(made, tmp_path):
    found = {fingerprint(opened(made))}
    succeed("convert", made.parent / "model", tmp_path / "seed", "--set", "seed=7", "--format", "quiet")
    found.add(fingerprint(opened(tmp_path / "seed")))
    changed = copy_of(made, tmp_path / "config")
    (changed / "config.json").write_text((changed / "config.json").read_text().replace("1e-06", "1e-05"))
    found.add(fingerprint(opened(changed)))
    assert len(found) == 3


def test_a_folder_without_checksums_is_read_as_a_whole(made, tmp_path):
    folder = copy_of(made, tmp_path / "copy")
    (folder / "tq_config.json").unlink()
    first = fingerprint(opened(folder))
    assert first.startswith("files:")
    shard = folder / "model.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert fingerprint(opened(folder)) != first


@pytest.mark.parametrize("spoil", [lambda sums: sums.popitem(), lambda sums: sums.update({next(iter(sums)): "0"})])
def test_checksums_that_leave_something_out_are_not_used(made, tmp_path, spoil):
    folder = copy_of(made, tmp_path / "copy")
    record = json.loads((folder / "tq_config.json").read_text())
    spoil(next(iter(record["tensors"].values()))["sha256"])
    (folder / "tq_config.json").write_text(json.dumps(record))
    assert fingerprint(opened(folder)).startswith("files:")


def test_rows(made, tmp_path):
    folder = copy_of(made, tmp_path / "copy")
    other = json.dumps(ROW | {"weights": f"files:{'b' * 64}"})
    found = rows(folder, f"{json.dumps(ROW)}\n\n{other}\n{json.dumps(ROW | {'value': 2})}")
    assert [one.value for one in found.rows] == [1.5, 2.0]
    assert [json.loads(line)["value"] for line in found.lines] == [1.5, 2]
    assert found.others == 1
    assert rows(folder, "").rows == ()


def test_no_file(made):
    assert read_results(opened(made), HERE).others == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "JSON object"),
        ("{", "not valid JSON"),
        (b"\xff\n", "not UTF-8"),
        ("{}", "weights"),
        (json.dumps(ROW | {"value": "1"}), "value"),
        (json.dumps(ROW | {"value": True}), "value"),
        (json.dumps(ROW).replace("1.5", "NaN"), "value"),
        (json.dumps(ROW).replace("1.5", "1e999"), "value"),
        (json.dumps(ROW | {"more": 1}), "more"),
        (json.dumps(ROW | {"metric": "x" * 300}), "metric"),
        (json.dumps(ROW | {"date": "yesterday"}), "date"),
        (json.dumps(ROW | {"weights": "a" * 64}), "weights"),
        (json.dumps(ROW | {"versions": {str(i): "1" for i in range(99)}}), "versions"),
        (f"{json.dumps(ROW)}\n" * 1001, "too many rows"),
        ("x" * (2 << 20), "too large"),
    ],
)
def test_rows_that_are_none(made, tmp_path, text, says):
    folder = copy_of(made, tmp_path / "copy")
    with pytest.raises(InputError) as caught:
        rows(folder, text)
    assert says in str(caught.value)
