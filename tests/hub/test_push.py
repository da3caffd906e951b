"""A folder onto a Hub and again: what is sent, what is removed, what is seen, and nothing of it by halves."""

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, logging
from support.command import succeed, tq
from support.fake_hub import FakeRepository
from support.fake_hub_pushes import converted, copy_of, writable_hub

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.hub.fetch import open_source
from tqcli.hub.push import quiet_library


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("push"))


@pytest.fixture
def out(made, tmp_path):
    return copy_of(made, tmp_path / "out")


@pytest.fixture
def hub(tmp_path):
    with writable_hub(tmp_path) as hub:
        yield hub


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def local(folder: Path) -> dict[str, bytes]:
    """All but the card, which is made anew."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files["README.md"]
    return files


def remote(hub, name="me/name", revision="main") -> dict[str, bytes]:
    return {
        key: value for key, value in hub.files(name, revision).items() if key not in ("README.md", ".gitattributes")
    }


def test_what_is_pushed_is_what_is_there(hub, out):
    result = succeed("push", out, "me/name")
    assert remote(hub) == local(out)
    assert hub.files("me/name")["README.md"].startswith(b"---\nbase_model: org/model\n")
    assert result.stdout.splitlines()[-1] == f"pushed   {hub.url}/me/name"
    assert not hub.repositories["me/name"].private
    assert len(hub.commits) == 1
    assert len(shards(out)) > 2, "the test needs several"


def test_the_local_folder_is_not_touched(hub, made, out):
    succeed("push", out, "me/name")
    assert local(out) == local(made)
    assert (out / "README.md").read_bytes() == (made / "README.md").read_bytes()


def test_read_again_from_the_hub(hub, out):
    succeed("push", out, "me/name")
    there = open_checkpoint(open_source("me/name"))
    assert there.content_fingerprint() == open_checkpoint(open_source(str(out))).content_fingerprint()
    assert "trellis3" in succeed("inspect", "me/name").stdout
    assert "checksums" in succeed("inspect", "me/name", "--verify").stdout


def test_again_nothing_is_sent(hub, out):
    succeed("push", out, "me/name")
    sent = sum(hub.uploads.values())
    result = succeed("push", out, "me/name")
    assert sum(hub.uploads.values()) == sent == len(shards(out))
    assert len(hub.commits) == 1
    assert result.stdout.splitlines()[-1] == f"the same {hub.url}/me/name   nothing to upload"


def test_only_what_differs_is_sent(hub, out):
    succeed("push", out, "me/name")
    succeed("push", out, "me/name", "--license", "apache-2.0", "--base", "org/other", "-m", "Another base")
    assert hub.commits[1]["changes"] == [("file", "README.md")]
    assert hub.commits[1]["header"]["summary"] == "Another base"


def test_stale_shards_go_with_the_commit_that_brings_the_new_ones(hub, out, made, tmp_path):
    succeed("push", out, "me/name")
    hub.repositories["me/name"].commit(hub.files("me/name") | {"notes.md": b"mine", "pictures/a.png": b"x"})
    succeed("convert", made.parent / "model", tmp_path / "whole", "--format", "quiet")
    result = succeed("push", tmp_path / "whole", "me/name", "--base", "org/model")
    assert remote(hub) == local(tmp_path / "whole") | {"notes.md": b"mine", "pictures/a.png": b"x"}
    assert {name for kind, name in hub.commits[1]["changes"] if kind == "deletedFile"} == {
        *shards(out), "model.safetensors.index.json"
    }  # fmt: skip
    for name in shards(out):
        assert f"removes  {name}\n" in result.stdout
    open_checkpoint(open_source("me/name"))


def test_what_is_removed_is_said_before_it_is(hub, out, made, tmp_path):
    succeed("push", out, "me/name")
    succeed("convert", made.parent / "model", tmp_path / "whole", "--format", "quiet")
    hub.refusals["POST /api/models/me/name/commit"] = (500, "no")
    result = tq("push", tmp_path / "whole", "me/name", "--base", "org/model")
    assert result.code == 3
    assert f"removes  {shards(out)[0]}\n" in result.stdout
    assert remote(hub) == local(out)


def test_a_branch(hub, out):
    result = succeed("push", out, "me/name", "--revision", "tq/3")
    assert set(hub.files("me/name")) == {".gitattributes"}
    assert remote(hub, revision="tq/3") == local(out)
    assert result.stdout.endswith(f"pushed   {hub.url}/me/name/tree/tq/3\n")
    assert b'from_pretrained("me/name", revision="tq/3"' in hub.files("me/name", "tq/3")["README.md"]
    succeed("push", out, "me/name", "--revision", "tq/3")
    assert len(hub.commits) == 1


def test_private(hub, out):
    succeed("push", out, "me/name", "--private")
    assert hub.repositories["me/name"].private


def test_what_is_to_be_private_never_goes_to_a_public_repository(hub, out):
    hub.repositories["me/name"] = FakeRepository()
    hub.repositories["me/name"].commit({})
    result = tq("push", out, "me/name", "--private")
    assert (result.code, hub.uploads.total()) == (2, 0)
    assert "public" in result.stderr


def test_a_pull_request_leaves_main_alone(hub, out):
    theirs = hub.repositories["them/name"] = FakeRepository()
    theirs.commit({"notes.md": b"theirs"})
    result = succeed("push", out, "them/name", "--create-pr")
    assert hub.files("them/name") == {"notes.md": b"theirs"}
    assert remote(hub, "them/name", "refs/pr/1") == local(out) | {"notes.md": b"theirs"}
    assert result.stdout.endswith(f"pushed   {hub.url}/them/name/discussions/1\n")


def test_going_on_in_a_pull_request(hub, out):
    hub.repositories["me/name"] = FakeRepository()
    hub.repositories["me/name"].commit({})
    succeed("push", out, "me/name", "--create-pr")
    result = succeed("push", out, "me/name", "--revision", "refs/pr/1", "--license", "apache-2.0", "--base", "org/b")
    assert result.stdout.endswith(f"pushed   {hub.url}/me/name/discussions/1\n")
    assert b"org/b" in hub.files("me/name", "refs/pr/1")["README.md"]
    assert hub.files("me/name") == {}


def test_foreign_files_of_the_folder_stay_here(hub, out):
    (out / "passwords.txt").write_text("secret")
    (out / ".env").write_text("secret")
    result = succeed("push", out, "me/name")
    assert not {"passwords.txt", ".env"} & set(hub.files("me/name"))
    assert "`passwords.txt` is left out" in result.stderr


def test_a_damaged_folder_is_not_pushed(hub, out):
    shard = out / shards(out)[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    result = tq("push", out, "me/name")
    assert result.code == 1
    assert "not what was written" in result.stderr
    assert not hub.repositories


def test_a_missing_shard(hub, out):
    (out / shards(out)[0]).unlink()
    assert tq("push", out, "me/name").code == 2
    assert not hub.repositories


def test_a_repository_that_changes_meanwhile_is_told(hub, out):
    def change():
        hub.repositories["me/name"].commit(hub.files("me/name"))

    hub.before_commit = change
    result = tq("push", out, "me/name")
    assert (result.code, len(hub.commits)) == (3, 0)
    assert "changed while it was pushed to" in result.stderr
    hub.before_commit = lambda: None
    succeed("push", out, "me/name")
    assert hub.uploads.total() == len(shards(out)), "uploaded once, by the first try"
    assert remote(hub) == local(out)


def test_a_file_that_the_hub_ignores_is_told(hub, out):
    hub.ignored.add("tokenizer.json")
    result = tq("push", out, "me/name")
    assert result.code == 3
    assert "`tokenizer.json` differs there" in result.stderr


def test_for_machines(hub, out):
    found = json.loads(succeed("push", out, "me/name", "--format", "json").stdout)
    assert found["url"] == f"{hub.url}/me/name"
    assert set(found["uploaded"]) == {*local(out), "README.md"} == {file["name"] for file in found["files"]}
    assert succeed("push", out, "me/name", "--format", "quiet").stdout == f"{hub.url}/me/name\n"


def test_what_the_hub_remarks_reaches_the_terminal_without_escapes(hub, out):
    assert r"note: the Hub remarks: Warnings while validating metadata in README.md: - a remark\x1b[31m" in (
        succeed("push", out, "me/name").stderr
    )


def test_the_library_is_as_noisy_afterwards_as_before():
    with quiet_library():
        assert are_progress_bars_disabled()
        assert logging.get_verbosity() == logging.ERROR
    assert not are_progress_bars_disabled()
    assert logging.get_verbosity() == logging.WARNING


def test_a_dry_run_asks_nobody_and_prints_the_card(hub, out):
    result = succeed("push", out, "me/name", "--dry-run")
    assert "base_model_relation: quantized" in result.stdout
    assert f"{shards(out)[0]} " in result.stdout
    assert not hub.requests
    assert not hub.repositories


def test_by_xet_as_the_real_hub_has_it(hub, out, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet_folder = tmp_path / "store"
    hub.xet_folder.mkdir()
    # Xet's folder does not tell the Hub what it has got.
    hub.store = {hashlib.sha256(data).hexdigest(): data for data in local(out).values()}
    succeed("push", out, "me/name")
    assert remote(hub) == local(out)
    assert not hub.uploads
    stored = sum(path.stat().st_size for path in hub.xet_folder.rglob("*") if path.is_file())
    assert stored > sum((out / name).stat().st_size for name in shards(out)) // 2
