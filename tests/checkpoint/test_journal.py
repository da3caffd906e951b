"""The journal: what was begun, what is whole; any cut of it reads as less done, never as something else."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tqcli.checkpoint.journal import JOURNAL_NAME, FinishedShard, Journal, read_begun
from tqcli.errors import MachineError

BEGUN = {"recipe": {"bits": 3, "summary": "é"}, "files": ["a"]}
SHARDS = [FinishedShard(f"model-{n:05d}-of-00003.safetensors", n, {f"tensor.{n}": "0" * 64}) for n in (1, 2, 3)]


def fill(folder) -> bytes:
    with Journal(folder) as journal:
        journal.begin(BEGUN)
        for shard in SHARDS:
            journal.add(shard)
    return (folder / JOURNAL_NAME).read_bytes()


def test_what_goes_in_comes_out(tmp_path):
    fill(tmp_path)
    with Journal(tmp_path) as journal:
        assert journal.begun == BEGUN
        assert journal.finished == {shard.name: shard for shard in SHARDS}


def test_a_new_one_is_empty(tmp_path):
    with Journal(tmp_path) as journal:
        assert (journal.begun, journal.finished) == ({}, {})


@given(st.integers(0, 10_000), st.binary(max_size=30))
@settings(deadline=None, max_examples=150)
def test_any_cut_and_any_garbage_reads_as_less_done(tmp_path_factory, cut, garbage):
    folder = tmp_path_factory.mktemp("journal")
    raw = fill(folder)
    cut %= len(raw) + 1
    (folder / JOURNAL_NAME).write_bytes(raw[:cut] + garbage)
    with Journal(folder) as journal:
        whole = raw[:cut].count(b"\n")
        found = list(journal.finished.values())
        # Garbage may begin with the line break that was cut off: then that line is whole.
        assert found == SHARDS[: len(found)]
        assert len(found) in (max(0, whole - 1), whole)
        if whole:
            assert journal.begun == BEGUN
        elif not journal.begun:
            return
        journal.add(SHARDS[2])
    with Journal(folder) as journal:
        assert journal.finished[SHARDS[2].name] == SHARDS[2]
        assert list(journal.finished.values())[: len(found)] == found


def test_beginning_anew_forgets(tmp_path):
    fill(tmp_path)
    with Journal(tmp_path) as journal:
        journal.begin({"other": 1})
        journal.add(SHARDS[0])
    with Journal(tmp_path) as journal:
        assert journal.begun == {"other": 1}
        assert list(journal.finished) == [SHARDS[0].name]


def test_forgetting_leaves_an_empty_one(tmp_path):
    fill(tmp_path)
    with Journal(tmp_path) as journal:
        journal.forget()
    assert (tmp_path / JOURNAL_NAME).read_bytes() == b""


def test_a_second_one_is_kept_out(tmp_path):
    with Journal(tmp_path):
        with pytest.raises(MachineError, match="another process is converting into"):
            Journal(tmp_path)
        with pytest.raises(MachineError, match="another process is converting into"):
            read_begun(tmp_path)
    with Journal(tmp_path):
        pass


def test_a_lock_on_a_journal_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """Another process finishes between our opening of the file and our lock on it."""
    original = os.open

    def late(path, flags, mode=0o777):
        file = original(path, flags, mode)
        path.unlink()
        return file

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(MachineError, match="another process is converting into"):
        Journal(tmp_path)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    import errno
    import fcntl

    def cannot(file, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", cannot)
    with pytest.raises(MachineError, match="cannot be locked"):
        Journal(tmp_path)


def test_looking_writes_nothing(tmp_path):
    assert read_begun(tmp_path) is None
    assert not list(tmp_path.iterdir())
    raw = fill(tmp_path)
    (tmp_path / JOURNAL_NAME).write_bytes(raw + b"torn")
    assert read_begun(tmp_path) == BEGUN
    assert (tmp_path / JOURNAL_NAME).read_bytes() == raw + b"torn"


def test_removing(tmp_path):
    with Journal(tmp_path) as journal:
        journal.remove()
        journal.remove()
    assert not list(tmp_path.iterdir())
