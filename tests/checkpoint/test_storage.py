import os
import threading

import pytest

from tqcli.checkpoint import storage
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError, MachineError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "w.safetensors").write_bytes(bytes(range(256)))
    (root / "config.json").write_bytes(b"{}")
    (root / "sub" / "notes.txt").write_bytes(b"hello")
    for hidden in (".git/HEAD", ".cache/huggingface/x.lock", "sub/.hidden"):
        (root / hidden).parent.mkdir(parents=True, exist_ok=True)
        (root / hidden).write_bytes(b"no")
    return root


def test_files_are_listed_sorted_without_hidden_ones(folder):
    with LocalFolder(folder) as local:
        assert list(local.files().items()) == [("config.json", 2), ("sub/notes.txt", 5), ("w.safetensors", 256)]


def test_names_for_people_and_for_publishing(folder, monkeypatch):
    assert (LocalFolder(str(folder)).label, LocalFolder(folder).origin) == (str(folder), "model")
    monkeypatch.chdir(folder / "sub")
    assert (LocalFolder("..").label, LocalFolder("..").origin, LocalFolder("..").revision) == ("..", "model", None)


def test_reading(folder):
    with LocalFolder(folder) as local:
        assert local.read("w.safetensors", 10, 5) == bytes(range(10, 15))
        assert local.read("w.safetensors", 256, 0) == b""
        assert local.read("sub/notes.txt", 0, 5) == b"hello"
        buffer = bytearray(8)
        local.read_into("w.safetensors", 100, memoryview(buffer)[2:6])
        assert bytes(buffer) == b"\0\0defg\0\0"


def test_reading_into_an_array_of_wider_items(folder):
    array = memoryview(bytearray(8)).cast("I")
    LocalFolder(folder).read_into("w.safetensors", 0, array)
    assert array.tobytes() == bytes(range(8))


@pytest.mark.parametrize(("offset", "length"), [(0, 257), (257, 0), (250, 7), (-1, 2), (0, -1), (1 << 80, 1)])
def test_past_the_end_is_an_error(folder, offset, length):
    with pytest.raises(InputError, match="too short"):
        LocalFolder(folder).read("w.safetensors", offset, length)


@pytest.mark.parametrize(
    "name", ["nope", "../secret", "/etc/passwd", "sub/../config.json", ".git/HEAD", "sub", "", "a\0"]
)
def test_only_listed_names_are_read(folder, name):
    (folder.parent / "secret").write_bytes(b"secret")
    for use in (lambda local: local.read(name, 0, 0), lambda local: local.fingerprint(name)):
        with pytest.raises(InputError, match="has no file"):
            use(LocalFolder(folder))


def test_short_reads_of_the_system_are_continued(folder, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, buffers, offset: real(handle, [buffers[0][:3]], offset))
    assert LocalFolder(folder).read("w.safetensors", 1, 100) == bytes(range(1, 101))


def test_a_file_that_shrinks_while_open_is_noticed(folder):
    local = LocalFolder(folder)
    local.read("w.safetensors", 0, 1)
    os.truncate(folder / "w.safetensors", 100)
    with pytest.raises(MachineError, match="changed while"):
        local.read("w.safetensors", 50, 100)


def test_a_file_that_is_replaced_before_it_is_opened_is_noticed(folder):
    local = LocalFolder(folder)
    local.files()
    os.utime(folder / "w.safetensors", ns=(1, 1))
    with pytest.raises(MachineError, match="changed while"):
        local.read("w.safetensors", 0, 1)


def test_a_file_that_disappears_is_a_machine_error(folder):
    local = LocalFolder(folder)
    local.files()
    (folder / "w.safetensors").unlink()
    with pytest.raises(MachineError, match="cannot read"):
        local.read("w.safetensors", 0, 1)


def test_a_disk_error_is_a_machine_error(folder, monkeypatch):
    def broken(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(MachineError, match="Input/output error"):
        LocalFolder(folder).read("w.safetensors", 0, 1)


def test_files_are_opened_once_by_many_threads(folder, monkeypatch):
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(path) or real(path, *rest))
    local = LocalFolder(folder)
    results = [b""] * 16

    def work(index):
        results[index] = local.read("w.safetensors", index, 4)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [bytes(range(index, index + 4)) for index in range(16)]
    assert len(opened) == 1


def test_closing_frees_the_handles_and_reading_opens_again(folder):
    local = LocalFolder(folder)
    before = os.dup(0)
    os.close(before)
    with local:
        local.read("w.safetensors", 0, 1)
        local.read("config.json", 0, 1)
    after = os.dup(0)
    os.close(after)
    assert after == before
    assert local.read("w.safetensors", 3, 1) == b"\3"
    local.close()


def test_the_fingerprint_follows_size_and_time(folder):
    first = LocalFolder(folder).fingerprint("w.safetensors")
    assert LocalFolder(folder).fingerprint("w.safetensors") == first
    os.utime(folder / "w.safetensors", ns=(1, 1))
    assert LocalFolder(folder).fingerprint("w.safetensors") != first


def make_snapshot(tmp_path):
    """A cache as huggingface_hub lays it out."""
    repository = tmp_path / "models--org--my--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "sub").mkdir(parents=True)
    (repository / "blobs" / "abc").write_bytes(b"12345")
    (snapshot / "w.safetensors").symlink_to("../../blobs/abc")
    (snapshot / "sub" / "w").symlink_to("../../../blobs/abc")
    return snapshot


def test_links_of_the_hugging_face_cache_work(tmp_path):
    local = LocalFolder(make_snapshot(tmp_path))
    assert dict(local.files()) == {"sub/w": 5, "w.safetensors": 5}
    assert local.read("sub/w", 1, 3) == b"234"
    assert (local.origin, local.revision) == ("org/my--name", "0" * 40)


def test_a_link_inside_the_folder_works(folder):
    (folder / "same.safetensors").symlink_to("w.safetensors")
    assert LocalFolder(folder).read("same.safetensors", 7, 1) == b"\7"


@pytest.mark.parametrize("target", ["../secret", "/etc/hostname", "sub/../../secret"])
def test_a_link_that_leaves_the_folder_is_refused(folder, target):
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "tokenizer.json").symlink_to(target)
    with pytest.raises(InputError, match="link that leaves the folder"):
        LocalFolder(folder).files()


def test_a_snapshot_may_not_link_to_other_places_of_the_cache(tmp_path):
    snapshot = make_snapshot(tmp_path)
    (tmp_path / "token").write_bytes(b"hf_secret")
    (snapshot / "notes").symlink_to("../../../token")
    with pytest.raises(InputError, match="link that leaves the folder"):
        LocalFolder(snapshot).files()


def test_a_link_to_nothing_says_so(folder):
    (folder / "x.safetensors").symlink_to("gone")
    with pytest.raises(InputError, match="link to a file that is not there"):
        LocalFolder(folder).files()


def test_a_link_to_itself_is_an_input_error(folder):
    (folder / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop"):
        LocalFolder(folder).files()


def test_a_link_to_a_folder_is_refused(folder):
    (folder / "again").symlink_to(".")
    with pytest.raises(InputError, match="not a plain file"):
        LocalFolder(folder).files()


def test_a_pipe_is_refused_and_never_waited_for(folder):
    os.mkfifo(folder / "pipe.safetensors")
    with pytest.raises(InputError, match="not a plain file"):
        LocalFolder(folder).files()


def test_a_folder_with_far_too_many_files_is_refused(folder, monkeypatch):
    monkeypatch.setattr(storage, "MAX_FILES", 2)
    with pytest.raises(InputError, match="more than 2 files"):
        LocalFolder(folder).files()


@pytest.mark.parametrize("path", ["nowhere", "model/config.json", "model/config.json/x", "a\0b"])
def test_what_is_no_folder_is_refused(folder, path):
    with pytest.raises(InputError):
        LocalFolder(folder.parent / path)
