"""Files without weights: which ones go along, and that they go along whole."""

import pytest
from support.checkpoints import gemma

from tqcli.checkpoint.sidecars import copy_sidecar, same_bytes, sidecars
from tqcli.checkpoint.storage import LocalFolder

COPIED = [
    "LICENSE", "README.md", "added_tokens.json", "chat_template.jinja", "merges.txt", "modeling_x.py",
    "sub/config.json", "processor_config.json", "tokenizer.json", "tokenizer.model", "onnx/readme.txt",
    "model.safetensors.txt",
]  # fmt: skip
ANEW = ["config.json", "model.safetensors", "model.safetensors.index.json", "consolidated.safetensors"]
LEFT = {
    "pytorch_model.bin": "weights in another form",
    "pytorch_model.bin.index.json": "index of weights in another form",
    "model.GGUF": "weights in another form",
    "original/consolidated.00.pth": "weights in another form",
    "onnx/model.onnx": "weights in another form",
    "assistant/model.safetensors": "weights in a subfolder",
    "assistant/model.safetensors.index.json": "weights in a subfolder",
    "tq_config.json": "it tells of another conversion",
    "tq_recipe.toml": "it tells of another conversion",
    "vocab.json.partial": "unfinished",
}


@pytest.fixture
def storage(tmp_path):
    for name in [*COPIED, *ANEW, *LEFT, ".hidden", ".git/config"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return LocalFolder(tmp_path)


def test_every_file_is_accounted_for(storage):
    copied, left_out = sidecars(storage)
    assert copied == sorted(COPIED)
    assert left_out == LEFT
    assert set(storage.files()) == {*copied, *left_out, *ANEW}


def test_a_copy_is_the_same_and_leaves_nothing_beside_it(tmp_path):
    gemma(tmp_path / "model")
    large = bytes(range(256)) * 70_000
    (tmp_path / "model" / "tokenizer.model").write_bytes(large)
    storage = LocalFolder(tmp_path / "model")
    out = tmp_path / "out"
    for name in sidecars(storage)[0]:
        copy_sidecar(storage, name, out)
        assert same_bytes(storage, name, out / name)
        assert (out / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 45, None])
def test_what_differs_is_seen(tmp_path, data):
    gemma(tmp_path / "model")
    storage = LocalFolder(tmp_path / "model")
    path = tmp_path / "tokenizer.json"
    if data is not None:
        path.write_bytes(data)
    assert storage.files()["tokenizer.json"] == 45
    assert not same_bytes(storage, "tokenizer.json", path)


def test_a_link_in_the_output_is_replaced_and_not_written_through(tmp_path):
    gemma(tmp_path / "model")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").symlink_to(tmp_path / "precious")
    copy_sidecar(LocalFolder(tmp_path / "model"), "tokenizer.json", tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
