"""Two storages read as one: whose file is whose, and that the joined checkpoint reads the right bytes."""

import json

import numpy as np
import pytest
from support import checkpoints

from tqcli.checkpoint.overlay import Overlay, join
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError

SHAPES = {"a.weight": (4, 8), "b.weight": (3, 8), "c.weight": (2, 8)}


@pytest.fixture
def base(tmp_path):
    tensors = {name: checkpoints.tensor(shape, seed=seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    checkpoints.write_checkpoint(tmp_path / "base", {"model_type": "llama", "from": "base"}, tensors, shards=3)
    return tmp_path / "base"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    checkpoints.write_file(
        tmp_path / "folder" / "polar_state.safetensors", {"a.weight": checkpoints.tensor((4, 8), seed=9)}
    )
    (tmp_path / "folder" / "tokenizer.json").write_text("{}")
    return tmp_path / "folder"


@pytest.fixture
def pair(folder, base):
    """The folder, opened with the base's config.json, and the base."""
    opened = open_checkpoint(LocalFolder(base))
    return open_checkpoint(Overlay(LocalFolder(folder), opened.storage, opened.tensors)), opened


def test_the_folders_files_come_first_and_the_bases_fill_up(pair, base):
    storage = pair[0].storage
    files = storage.files()
    assert files["tokenizer.json"] == 2
    assert storage.read("tokenizer.json", 0, 2) == b"{}"
    assert pair[0].config["from"] == "base"
    side = checkpoints.SIDE_FILES["chat_template.jinja"]
    assert storage.read("chat_template.jinja", 0, len(side)) == side
    assert list(files) == sorted(files)
    assert not [name for name in files if name.startswith(("base-", "model"))]


def test_a_config_of_the_folders_own_is_taken(pair, folder, base):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "from": "folder"}))
    opened = open_checkpoint(LocalFolder(base))
    assert open_checkpoint(Overlay(LocalFolder(folder), opened.storage, {})).config["from"] == "folder"


def test_joined_tensors_are_read_from_where_they_lie(pair, base):
    joined = join(*pair, ["c.weight", "b.weight"])
    assert list(joined.tensors) == ["a.weight", "b.weight", "c.weight"]
    assert joined.storage.taken == 2
    for seed, name in ((9, "a.weight"), (1, "b.weight"), (2, "c.weight")):
        tensor = joined.tensors[name]
        expected = checkpoints.tensor(SHAPES[name], seed=seed)[2]
        assert joined.storage.read(tensor.file, tensor.offset, tensor.nbytes) == expected
        buffer = bytearray(tensor.nbytes)
        joined.storage.read_into(tensor.file, tensor.offset, memoryview(buffer))
        assert bytes(buffer) == expected


def test_only_files_that_are_used_are_listed_and_counted(pair):
    joined = join(*pair, ["c.weight"])
    shards = [shard.name for shard in joined.shards]
    assert shards == ["polar_state.safetensors", "base-model-00003-of-00003.safetensors"]
    assert [name for name in joined.storage.files() if name.endswith(".safetensors")] == sorted(shards)
    assert [tensor.name for tensor in joined.shards[1].tensors] == ["c.weight"]


def test_a_file_of_that_name_in_the_folder_is_not_hidden(folder, base):
    checkpoints.write_file(folder / "base-model-00003-of-00003.safetensors", {"x": checkpoints.tensor((2, 8), seed=5)})
    checkpoints.write_file(folder / "base-model-00001-of-00003.safetensors", {"y": checkpoints.tensor((2, 8), seed=6)})
    checkpoints.write_file(folder / "base-model-00002-of-00003.safetensors", {"z": checkpoints.tensor((2, 8), seed=7)})
    opened = open_checkpoint(LocalFolder(base))
    known = open_checkpoint(Overlay(LocalFolder(folder), opened.storage, opened.tensors))
    joined = join(known, opened, ["c.weight"])
    for name, seed in (("x", 5), ("c.weight", 2)):
        tensor = joined.tensors[name]
        assert (
            joined.storage.read(tensor.file, tensor.offset, tensor.nbytes) == checkpoints.tensor((2, 8), seed=seed)[2]
        )


def test_the_fingerprint_is_of_both(pair, base):
    before = join(*pair, ["c.weight"]).fingerprint()
    assert join(*pair, ["c.weight"]).fingerprint() == before
    assert join(*pair, ["b.weight"]).fingerprint() != before
    data = checkpoints.read_file(base / "model-00003-of-00003.safetensors")
    changed = np.frombuffer(data["c.weight"][2], np.uint16).copy()
    changed[0] ^= 1
    checkpoints.write_file(base / "model-00003-of-00003.safetensors", {"c.weight": ("BF16", (2, 8), changed.tobytes())})
    folder, opened = pair[0].storage.folder, open_checkpoint(LocalFolder(base))
    again = open_checkpoint(Overlay(folder, opened.storage, opened.tensors))
    assert join(again, opened, ["c.weight"]).fingerprint() != before


def test_copies_of_both_give_the_same(pair, folder, base):
    joined = join(*pair, ["c.weight"])
    copy = joined.storage.over(LocalFolder(folder), LocalFolder(base))
    assert copy.files() == joined.storage.files()
    assert copy.taken == 1


def test_what_is_in_neither_is_refused(pair):
    storage = join(*pair, []).storage
    with pytest.raises(InputError, match="has no file"):
        storage.read("base-model-00001-of-00003.safetensors", 0, 1)
    with pytest.raises(KeyError):
        join(*pair, ["d.weight"])


def test_it_is_called_as_the_folder(pair, folder):
    storage = pair[0].storage
    assert (storage.label, storage.origin, storage.revision) == (str(folder), "folder", None)
