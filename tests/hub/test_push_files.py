"""What is pushed of a folder, and what a push may touch of what is there: nothing that is not ours by its name."""

import hashlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import checkpoints
from support.command import succeed

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError, MachineError
from tqcli.hub.push import Destination, check_destination
from tqcli.hub.push_files import RemoteFile, changes, hashed, is_same, made, select_files

OURS = {"tq_config.json": "1", "model-00001-of-00002.safetensors": "1", "model-00002-of-00002.safetensors": "1",
        "model.safetensors.index.json": "1"}  # fmt: skip


def there(names):
    return {name: RemoteFile(1, name) for name in names}


def pushed(*names):
    return [made(name, b"new") for name in names]


def test_hashes_are_git_s_and_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"some content\n" * 1_000_000)
    [file] = hashed(LocalFolder(tmp_path), ["a"])
    git = subprocess.run(["git", "hash-object", tmp_path / "a"], capture_output=True, text=True, check=True).stdout
    assert file.git_sha1 == git.strip() == made("a", (tmp_path / "a").read_bytes()).git_sha1
    assert file.sha256 == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert is_same(file, RemoteFile(file.size, file.sha256))
    assert is_same(file, RemoteFile(file.size, file.git_sha1))
    assert not is_same(file, RemoteFile(file.size + 1, file.sha256))
    assert not is_same(file, RemoteFile(file.size, "0" * 64))
    assert not is_same(file, None)


def test_a_file_that_was_written_since_it_was_listed(tmp_path):
    (tmp_path / "a").write_bytes(b"verified")
    folder = LocalFolder(tmp_path)
    assert folder.read("a", 0, 8) == b"verified"
    (tmp_path / "a").write_bytes(b"changed!")
    with pytest.raises(MachineError, match="changed while"):
        hashed(folder, ["a"])


def test_stale_files_of_ours_go_and_nothing_else():
    keep = ["notes.md", ".gitattributes", "sub/model.safetensors", "LICENSE", "other.bin", "tokenizer.json"]
    found = changes(pushed("model.safetensors", "tq_config.json"), there([*OURS, *keep]), "me/name")
    assert set(found.removed) == OURS.keys() - {"tq_config.json"}
    assert found.replaced == ("tq_config.json",)


@given(st.sets(st.sampled_from([*OURS, "notes.md", ".gitattributes", "LICENSE", "a/b.safetensors", "tq_recipe.toml"])))
def test_what_is_removed_was_there_is_ours_and_is_not_wanted(names):
    files = pushed("model.safetensors", "config.json")
    try:
        found = changes(files, there(names), "me/name")
    except InputError:
        assert "tq_config.json" not in names
        return
    assert set(found.removed) <= names & {*OURS, "tq_recipe.toml"}
    assert {file.name for file in found.upload} == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("name", ["consolidated.safetensors", "adapter_model.safetensors", "x.safetensors.index.json",
                                  "model-1-of-2.safetensors"])  # fmt: skip
def test_weights_that_would_be_read_with_ours(name):
    with pytest.raises(InputError, match="did not write"):
        changes(pushed("model.safetensors"), there([name]), "me/name")


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00003.safetensors"])
def test_an_original_is_never_replaced(name):
    with pytest.raises(InputError, match="another checkpoint"):
        changes(pushed("model.safetensors", "tq_config.json"), there([name, "config.json"]), "me/name")


def test_what_belongs_to_a_folder_of_ours(tmp_path):
    checkpoints.gemma(tmp_path / "model")
    succeed("convert", tmp_path / "model", tmp_path / "out", "--format", "quiet")
    for name in ("mine.txt", "tq_results.jsonl", "extra.json"):
        (tmp_path / "out" / name).write_text("{}")
    names, left_out = select_files(open_checkpoint(LocalFolder(tmp_path / "out")))
    assert left_out == ["extra.json", "mine.txt"]
    assert set(names) == {*checkpoints.SIDE_FILES, "config.json", "model.safetensors", "tq_config.json",
                          "tq_recipe.toml"} - {"README.md"}  # fmt: skip


def test_what_belongs_to_a_folder_of_others(tmp_path):
    checkpoints.gemma(tmp_path / "model", shards=2)
    (tmp_path / "model" / "pytorch_model.bin").write_text("x")
    names, left_out = select_files(open_checkpoint(LocalFolder(tmp_path / "model")))
    assert left_out == ["pytorch_model.bin"]
    assert "model.safetensors.index.json" in names
    assert "tokenizer.json" in names


@pytest.mark.parametrize("name", ["name", "me/name/x", "../x", "me/na me", "me/\x1b[31m", "", "me/" + "x" * 100])
def test_names_that_are_none(name):
    with pytest.raises(InputError, match="not a Hub id"):
        check_destination(Destination(name))


@pytest.mark.parametrize(
    "name", ["", "a b", "a..b", "-x", "/a", "a/", "a//b", "a.lock", "a\n", 'a"b', "$(x)", "0" * 40, "x" * 101]
)
def test_branches_that_are_none(name):
    with pytest.raises(InputError, match="no branch"):
        check_destination(Destination("me/name", revision=name))


@pytest.mark.parametrize("name", ["main", "tq3", "tq/3", "refs/pr/7", "v1.0_x-y"])
def test_branches(name):
    check_destination(Destination("me/name", revision=name))


def test_a_pull_request_is_against_main():
    with pytest.raises(InputError):
        check_destination(Destination("me/name", revision="tq3", create_pr=True))
