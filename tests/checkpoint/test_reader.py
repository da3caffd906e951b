import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save, save_file

from tqcli.checkpoint import shards
from tqcli.checkpoint.reader import open_checkpoint, read_header
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError

MODELS = Path(__file__).parents[3] / "shared" / "models"
INDEX = "model.safetensors.index.json"


def put(folder, name, *tensors, metadata=None):
    save_file({tensor: np.arange(6, dtype=np.float32) for tensor in tensors}, folder / name, metadata)


def put_index(folder, weight_map, name=INDEX):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


@pytest.fixture
def sharded(folder):
    put(folder, "model-00001-of-00002.safetensors", "a", "b", metadata={"format": "pt", "part": "1"})
    put(folder, "model-00002-of-00002.safetensors", "c", metadata={"format": "pt", "part": "2"})
    put_index(
        folder, dict.fromkeys("ab", "model-00001-of-00002.safetensors") | {"c": "model-00002-of-00002.safetensors"}
    )
    return folder


def read(folder):
    return open_checkpoint(LocalFolder(folder))


def refused(folder):
    with pytest.raises(InputError) as caught:
        read(folder)
    return str(caught.value)


def test_one_file(folder):
    put(folder, "model.safetensors", "a", "b", metadata={"format": "pt"})
    checkpoint = read(folder)
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.config_bytes == (folder / "config.json").read_bytes()
    assert (checkpoint.index_bytes, checkpoint.ignored_files, checkpoint.metadata) == (None, (), {"format": "pt"})


def test_shards_with_an_index(sharded):
    checkpoint = read(sharded)
    assert [(tensor.name, tensor.file[6:11]) for tensor in checkpoint.tensors.values()] == [
        ("a", "00001"),
        ("b", "00001"),
        ("c", "00002"),
    ]
    assert checkpoint.index_bytes == (sharded / INDEX).read_bytes()
    assert checkpoint.metadata == {"format": "pt"}
    assert [shard.metadata["part"] for shard in checkpoint.shards] == ["1", "2"]
    assert [shard.size for shard in checkpoint.shards] == [(sharded / s.name).stat().st_size for s in checkpoint.shards]


def test_shards_without_an_index(sharded):
    (sharded / INDEX).unlink()
    assert list(read(sharded).tensors) == ["a", "b", "c"]


def test_an_index_of_another_name_is_used_when_it_is_the_only_one(sharded):
    (sharded / INDEX).rename(sharded / "tq.safetensors.index.json")
    assert read(sharded).index_bytes is not None


def test_two_indexes_of_other_names_are_refused(sharded):
    for name in ("x", "y"):
        put_index(sharded, {}, f"{name}.safetensors.index.json")
    assert [name for name, _ in read(sharded).ignored_files] == ["x.safetensors.index.json", "y.safetensors.index.json"]
    (sharded / INDEX).unlink()
    assert "several indexes" in refused(sharded)


def test_tensors_are_where_the_library_finds_them(sharded):
    checkpoint = read(sharded)
    for tensor in checkpoint.tensors.values():
        with safe_open(sharded / tensor.file, "np") as file:
            expected = file.get_tensor(tensor.name)
        data = checkpoint.storage.read(tensor.file, tensor.offset, tensor.nbytes)
        assert np.frombuffer(data, np.float32).tolist() == expected.tolist()


def test_only_headers_are_read(folder):
    save_file({"big": np.zeros(1 << 20, np.uint8)}, folder / "model.safetensors")

    class Counting(LocalFolder):
        count = 0

        def read(self, name, offset, length):
            if name.endswith(".safetensors"):
                Counting.count += length
            return super().read(name, offset, length)

    open_checkpoint(Counting(folder))
    assert Counting.count < 200


def test_two_layouts_of_the_same_weights(folder):
    put(folder, "model.safetensors", "a")
    put(folder, "consolidated.safetensors", "x")
    checkpoint = read(folder)
    assert list(checkpoint.tensors) == ["a"]
    assert [name for name, _ in checkpoint.ignored_files] == ["consolidated.safetensors"]


def test_files_that_the_index_does_not_name_are_reported(sharded):
    put(sharded, "consolidated.safetensors", "x")
    put_index(sharded, {"x": "consolidated.safetensors"}, "consolidated.safetensors.index.json")
    assert [name for name, _ in read(sharded).ignored_files] == [
        "consolidated.safetensors",
        "consolidated.safetensors.index.json",
    ]


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert "`model-00002-of-00002.safetensors` is missing" in refused(sharded)
    (sharded / INDEX).unlink()
    assert "`model-00002-of-00002.safetensors` is missing" in refused(sharded)


def test_a_tensor_that_is_not_there(sharded):
    put(sharded, "model-00002-of-00002.safetensors", "d")
    assert "tensor `c` is not in `model-00002-of-00002.safetensors`" in refused(sharded)


def test_a_tensor_in_the_wrong_shard(sharded):
    put(sharded, "model-00001-of-00002.safetensors", "a")
    put(sharded, "model-00002-of-00002.safetensors", "b", "c")
    assert "tensor `b` is in `model-00002-of-00002.safetensors`" in refused(sharded)


def test_a_tensor_that_the_index_does_not_know(sharded):
    put(sharded, "model-00002-of-00002.safetensors", "c", "extra")
    assert "tensor `extra` in `model-00002-of-00002.safetensors` is not in the index" in refused(sharded)


def test_a_tensor_in_two_shards(sharded):
    put(sharded, "model-00002-of-00002.safetensors", "a", "c")
    message = refused(sharded)
    assert "tensor `a` is there twice" in message
    assert "model-00001-of-00002.safetensors" in message and "model-00002-of-00002.safetensors" in message


@pytest.mark.parametrize(
    "file",
    [
        "../x.safetensors",
        "/x.safetensors",
        "sub/x.safetensors",
        "x.bin",
        ".x.safetensors",
        "a\\x.safetensors",
        1,
        None,
        "",
    ],
)
def test_an_index_may_name_plain_files_only(sharded, file):
    put_index(sharded, {"a": file})
    assert "not a plain safetensors name" in refused(sharded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no `weight_map`"),
        ('{"weight_map": []}', "no `weight_map`"),
        ('{"weight_map": {}}', "no `weight_map`"),
        ("[]", "JSON object"),
        ("{", "not valid JSON"),
        ('{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}', "twice"),
        ('{"weight_map": ' + "[" * 100_000, "nested"),
    ],
)
def test_a_damaged_index(sharded, text, message):
    (sharded / INDEX).write_text(text)
    assert message in refused(sharded) and INDEX in refused(sharded)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"a": 1, "a": 2}', "\ufeff{}", '{"a": ' + "9" * 5000 + "}"])
def test_a_damaged_config(folder, text):
    put(folder, "model.safetensors", "a")
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder)


def test_large_files_of_text_are_not_read(sharded, monkeypatch):
    monkeypatch.setattr(shards, "MAX_JSON_BYTES", 100)
    assert f"`{INDEX}` is too large" in refused(sharded)
    monkeypatch.setattr(shards, "MAX_JSON_BYTES", 10)
    assert "`config.json` is too large" in refused(sharded)


def test_no_config(folder):
    put(folder, "model.safetensors", "a")
    (folder / "config.json").unlink()
    assert "has no `config.json`" in refused(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "can run code"),
        ("consolidated.00.pth", "can run code"),
        ("model-q4.gguf", "GGUF"),
        ("transformer/model.safetensors", "name the subfolder"),
        ("readme.md", "name a folder or a repository"),
    ],
)
def test_no_safetensors(folder, name, message):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    assert "holds no safetensors files" in refused(folder) and message in refused(folder)


def test_a_damaged_shard_is_named(sharded):
    file = sharded / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "`model-00002-of-00002.safetensors` is truncated" in refused(sharded)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 40])
def test_every_cut_of_the_header_is_noticed(folder, length):
    (folder / "model.safetensors").write_bytes(save({"a": np.zeros(9, np.float32)})[:length])
    assert "truncated" in refused(folder)


def test_fingerprint_is_stable_and_follows_content(sharded):
    first = read(sharded).fingerprint()
    assert read(sharded).fingerprint() == first
    seen = {first}
    (sharded / "config.json").write_text('{"model_type": "llama" }')
    seen.add(read(sharded).fingerprint())
    put(sharded, "model-00002-of-00002.safetensors", "c", metadata={"other": "header"})
    seen.add(read(sharded).fingerprint())
    # Other data under the same header shows in what the storage says of the file.
    data = bytearray((sharded / "model-00001-of-00002.safetensors").read_bytes())
    data[-1] ^= 1
    (sharded / "model-00001-of-00002.safetensors").write_bytes(data)
    seen.add(read(sharded).fingerprint())
    assert len(seen) == 4


def test_a_header_by_itself(sharded):
    header = read_header(LocalFolder(sharded), "model-00001-of-00002.safetensors")
    assert [tensor.name for tensor in header.tensors] == ["a", "b"]


@pytest.mark.skipif(not MODELS.is_dir(), reason="the shared models are not here")
@pytest.mark.parametrize("name", ["tiny", "referee"])
def test_a_checkpoint_written_by_transformers(name):
    checkpoint = read(MODELS / name)
    assert len(checkpoint.shards) == 3 and not checkpoint.ignored_files
    assert list(checkpoint.tensors) and checkpoint.metadata == {"format": "pt"}


def test_an_index_none_of_whose_files_is_there_yields_to_the_single_file(folder):
    """Published TQ3 folders can carry the index of the source that they were made from."""
    put(folder, "model.safetensors", "a", "b")
    put_index(folder, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})

    checkpoint = read(folder)

    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.ignored_files[0][0] == INDEX
