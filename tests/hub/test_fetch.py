import subprocess
import sys

import pytest

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError
from tqcli.hub.fetch import download, is_hub_id, open_source


def test_a_folder_is_opened_without_the_hub_library(tmp_path):
    code = (
        "import sys; from tqcli.hub.fetch import open_source; open_source(sys.argv[1]).files();"
        "sys.exit(any(m in sys.modules for m in ('huggingface_hub', 'torch', 'numpy', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(InputError, match="no revisions"):
        open_source(str(tmp_path), "main")


@pytest.mark.parametrize(
    "source",
    [
        "",
        ".hidden/x",
        "./nowhere",
        "../nowhere",
        "a/b/c",
        "nowhere",
        "~/x",
        "/no/where",
        "a//b",
        "a/..",
        "a/b.git",
        "a b/c",
        "a/\0",
    ],
)
def test_what_is_neither_folder_nor_id_is_refused_without_asking_the_hub(hub, source):
    with pytest.raises(InputError, match="neither a folder nor a Hub id"):
        open_source(source)
    assert hub.requests == []


@pytest.mark.parametrize("source", ["google/gemma-4-26B-A4B-it", "Qwen/Qwen2.5-0.5B", "a/b_c", "01-ai/Yi-1.5"])
def test_hub_ids(source):
    assert is_hub_id(source)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        open_source(str(tmp_path / "model.safetensors"))


def test_a_folder_wins_over_a_hub_id(hub, tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_source("org/model"), LocalFolder)
    assert hub.requests == []


def test_a_checkpoint_is_opened_by_small_reads(hub, model, weights):
    checkpoint = open_checkpoint(open_source("org/model"))
    assert list(checkpoint.tensors) == ["b", "a"]
    assert checkpoint.storage.origin == "org/model"
    assert checkpoint.storage.revision == model.refs["main"]
    ranges = [request[2] for request in hub.requests if request[1].endswith("model.safetensors")]
    assert ranges[0] == "bytes=0-7" and len(ranges) == 2


def test_download_gives_the_same_bytes_and_reports_them(hub, model, weights):
    remote = open_source("org/model")
    seen = []
    local = download(remote, ["model.safetensors", "extra/notes.txt"], progress=lambda *step: seen.append(step))
    assert dict(local.files()) == {"extra/notes.txt": 0, "model.safetensors": len(weights)}
    assert local.read("model.safetensors", 0, len(weights)) == weights
    assert (local.origin, local.revision) == ("org/model", remote.revision)
    assert seen == sorted(seen) and seen[-1] == (len(weights), len(weights))


def test_download_stays_at_the_commit_that_was_opened(hub, model, weights):
    remote = open_source("org/model")
    model.commit({"model.safetensors": b"newer"})
    assert download(remote, ["model.safetensors"]).read("model.safetensors", 0, len(weights)) == weights


def test_a_second_download_fetches_nothing(hub, model):
    remote = open_source("org/model")
    download(remote, ["model.safetensors"])
    hub.requests.clear()
    download(remote, ["model.safetensors"])
    assert not [request for request in hub.requests if request[0] == "GET" and "/resolve/" in request[1]]


def test_a_name_with_glob_signs_is_one_file(hub, model):
    model.commit({"a[1].txt": b"one", "a1.txt": b"two"})
    assert dict(download(open_source("org/model"), ["a[1].txt"]).files()) == {"a[1].txt": 3}


def test_a_file_that_is_not_listed_cannot_be_downloaded(hub, model):
    with pytest.raises(InputError, match="has no file `nope`"):
        download(open_source("org/model"), ["nope"])


def test_nothing_is_printed(hub, model, capfd):
    download(open_source("org/model"), ["model.safetensors"], progress=lambda done, total: None)
    assert capfd.readouterr() == ("", "")
