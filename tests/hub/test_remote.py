import json

import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils import close_session
from support.fake_hub import FAULTS, FakeRepository

from tqcli.errors import InputError, MachineError
from tqcli.hub import remote
from tqcli.hub.fetch import download, open_source


def test_files_are_listed_with_sizes_and_hashes(hub, model, weights):
    folder = open_source("org/model")
    assert dict(folder.files()) == {"config.json": 23, "extra/notes.txt": 0, "model.safetensors": len(weights)}
    assert len(folder.fingerprint("model.safetensors")) == 64
    assert len(folder.fingerprint("config.json")) == 40


def test_reading_ranges(hub, model, weights):
    folder = open_source("org/model")
    assert folder.read("model.safetensors", 100, 1000) == weights[100:1100]
    assert folder.read("model.safetensors", 0, len(weights)) == weights
    assert folder.read("model.safetensors", len(weights), 0) == b""
    assert folder.read("extra/notes.txt", 0, 0) == b""
    buffer = bytearray(b"-" * 12)
    folder.read_into("model.safetensors", 5, memoryview(buffer)[1:11])
    assert bytes(buffer) == b"-" + weights[5:15] + b"-"


def test_long_reads_go_in_chunks(hub, model, weights, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 100_001)
    folder = open_source("org/model")
    hub.requests.clear()
    assert folder.read("model.safetensors", 1, len(weights) - 1) == weights[1:]
    assert [request[2] for request in hub.requests][:2] == ["bytes=1-100001", "bytes=100002-200002"]


def test_past_the_end_is_an_error_without_a_request(hub, model, weights):
    folder = open_source("org/model")
    hub.requests.clear()
    for offset, length in ((0, len(weights) + 1), (len(weights) + 1, 0), (-1, 1), (1, -1)):
        with pytest.raises(InputError, match="too short"):
            folder.read("model.safetensors", offset, length)
    with pytest.raises(InputError, match="has no file"):
        folder.read("../config.json", 0, 1)
    assert hub.requests == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_does_not_show(hub, model, weights, fault):
    folder = open_source("org/model")
    hub.faults[fault] = 3
    assert folder.read("model.safetensors", 100, 1000) == weights[100:1100]
    assert hub.faults[fault] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_an_error_and_never_wrong_bytes(hub, model, fault):
    folder = open_source("org/model")
    hub.faults[fault] = 1000
    with pytest.raises(MachineError) as caught:
        folder.read("model.safetensors", 100, 1000)
    assert caught.value.why and hub.url not in str(caught.value)


def test_the_whole_file_is_accepted_where_the_whole_file_was_asked_for(hub, model, weights):
    folder = open_source("org/model")
    hub.faults["whole file"] = 1
    before = len(hub.requests)
    assert folder.read("model.safetensors", 0, len(weights)) == weights
    assert len(hub.requests) == before + 1


def test_everything_is_read_at_one_commit(hub, model, weights):
    first = model.refs["main"]
    folder = open_source("org/model")
    model.commit({"model.safetensors": b"x" * len(weights), "config.json": b"{}"})
    assert folder.read("model.safetensors", 0, 8) == weights[:8]
    assert all(first in request[1] for request in hub.requests if "/resolve/" in request[1])
    assert open_source("org/model").revision == model.refs["main"] != first
    assert open_source("org/model", first).revision == first


def test_a_listing_that_fails_for_a_moment_is_asked_again(hub, model):
    hub.listing_failures = 2
    assert "config.json" in open_source("org/model").files()
    hub.listing_failures = 100
    with pytest.raises(MachineError, match="the Hub failed"):
        open_source("org/model")


def test_a_redirect_keeps_the_range_and_loses_the_token(hub, model, weights):
    hub.redirects, model.private = True, True
    hub.tokens.add("hf_goodtoken")
    folder = open_source("org/model", token="hf_goodtoken")
    assert folder.read("model.safetensors", 100, 1000) == weights[100:1100]
    assert hub.requests[-1][1].startswith("/elsewhere/")
    assert hub.tokens_seen_elsewhere == []


def test_no_such_repository(hub):
    with pytest.raises(InputError, match="no such model on the Hub: `org/nothing`") as caught:
        open_source("org/nothing")
    assert "hf auth login" in caught.value.fix


def test_no_such_revision(hub, model):
    with pytest.raises(InputError, match="`org/model` has no revision `v9`"):
        open_source("org/model", "v9")


def test_a_private_repository_needs_a_token(hub, model):
    model.private = True
    hub.tokens.add("hf_goodtoken")
    with pytest.raises(InputError, match="no such model"):
        open_source("org/model")
    assert open_source("org/model", token="hf_goodtoken").read("config.json", 0, 1) == b"{"


def test_a_token_that_is_refused_is_not_shown(hub, model):
    with pytest.raises(InputError, match="does not accept the token") as caught:
        open_source("org/model", token="hf_badtokenbadtoken")
    assert "hf_bad" not in str(caught.value)


def test_a_gated_repository_says_how_to_get_in(hub, model):
    model.gated = True
    folder = open_source("org/model")
    for attempt in (lambda: folder.read("config.json", 0, 1), lambda: download(folder, ["config.json"])):
        with pytest.raises(InputError, match="is gated") as caught:
            attempt()
        assert "org/model" in caught.value.fix and "hf auth login" in caught.value.fix


def test_no_network(hub, model):
    folder = open_source("org/model")
    # A connection kept open would outlive the server.
    hub.__exit__()
    close_session()
    for attempt in (lambda: open_source("org/model"), lambda: folder.read("config.json", 0, 1)):
        with pytest.raises(MachineError, match="cannot reach the Hub"):
            attempt()


def test_offline_without_a_copy(hub, model, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match="not in the local cache") as caught:
        open_source("org/model")
    assert "HF_HUB_OFFLINE" in caught.value.fix
    assert hub.requests == []


def test_offline_in_the_middle(hub, model, monkeypatch):
    folder = open_source("org/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE"):
        folder.read("config.json", 0, 1)


def test_offline_with_a_copy(hub, model, weights, monkeypatch):
    folder = open_source("org/model")
    download(folder, list(folder.files()))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    copy = open_source("org/model", folder.revision)
    assert copy.read("model.safetensors", 0, len(weights)) == weights
    assert (copy.origin, copy.revision) == ("org/model", folder.revision)


@pytest.mark.skipif(not hasattr(errors, "IncompleteSnapshotError"), reason="huggingface_hub 1.5 cannot tell")
def test_offline_with_half_a_copy(hub, model, monkeypatch):
    folder = open_source("org/model")
    download(folder, ["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match="only in part"):
        open_source("org/model", folder.revision)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "a\\b", "a//b"])
def test_a_listed_name_that_leaves_the_folder_is_refused(hub, name):
    hub.repositories["org/model"] = FakeRepository()
    hub.repositories["org/model"].commit({name: b"x"})
    with pytest.raises(InputError, match="unusable name"):
        open_source("org/model")


def test_a_listing_without_a_commit_or_sizes_is_refused(hub, model, monkeypatch):
    class Info:
        sha = "main"
        siblings = ()

    monkeypatch.setattr(remote.HfApi, "model_info", lambda *a, **k: Info())
    with pytest.raises(MachineError, match="which commit"):
        open_source("org/model")
    Info.sha = "0" * 40
    Info.siblings = [type("Sibling", (), {"rfilename": "a", "size": None, "lfs": None, "blob_id": "1"})()]
    with pytest.raises(MachineError, match="how large"):
        open_source("org/model")


def test_a_download_that_came_out_wrong_is_noticed(hub, model, weights, monkeypatch, tmp_path):
    folder = open_source("org/model")
    (tmp_path / "model.safetensors").write_bytes(weights[:-1])
    monkeypatch.setattr("tqcli.hub.download.snapshot_download", lambda *a, **k: str(tmp_path))
    with pytest.raises(MachineError, match="not what was downloaded"):
        download(folder, ["model.safetensors"])


def test_a_transfer_that_breaks_is_a_machine_error(hub, model, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("Data processing error: https://signed.example/x?secret")

    monkeypatch.setattr("tqcli.hub.download.snapshot_download", broken)
    with pytest.raises(MachineError, match="Data processing error") as caught:
        download(open_source("org/model"), ["config.json"])
    assert "secret" not in str(caught.value)


def test_a_full_disk_names_the_way_out(hub, model, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tqcli.hub.download.snapshot_download", full)
    with pytest.raises(MachineError, match="No space left") as caught:
        download(open_source("org/model"), ["config.json"])
    assert "HF_HOME" in caught.value.fix


def test_config_is_what_the_repository_holds(hub, model):
    folder = open_source("org/model")
    assert json.loads(folder.read("config.json", 0, folder.files()["config.json"])) == {"model_type": "llama"}
