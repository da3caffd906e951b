"""Memory that is free for this process, inside control groups too."""

from pathlib import Path

import pytest

from tqcli.serving.machine import available_memory

GB = 1_000_000_000


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def group(at: str, limit: str, used: int, files: int = 0) -> dict[str, str]:
    stat = f"anon 5\ninactive_file {files // 2}\nactive_file {files - files // 2}\n"
    place = f"sys/fs/cgroup{at}"
    return {f"{place}/memory.max": limit + "\n", f"{place}/memory.current": f"{used}\n", f"{place}/memory.stat": stat}


@pytest.fixture
def root(tmp_path):
    write(tmp_path, {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   16000000 kB\n", "proc/self/cgroup": "0::/a/b\n"})
    return tmp_path


def test_the_machines(root):
    assert available_memory(root) == 16_000_000 * 1024


def test_a_group_that_is_full_of_files_it_could_drop(root):
    write(root, group("/a/b", str(8 * GB), 7 * GB, files=6 * GB))
    assert available_memory(root) == 7 * GB


def test_the_tightest_group_around(root):
    write(root, group("/a/b", str(8 * GB), 0) | group("/a", str(4 * GB), 1 * GB) | group("", "max", 0))
    assert available_memory(root) == 3 * GB


def test_a_container_sees_its_group_at_the_top(root):
    write(root, group("", str(2 * GB), 5 * GB))
    assert available_memory(root) == 0


def test_the_older_kind_of_groups(root):
    place = "sys/fs/cgroup/memory"
    stat = f"total_inactive_file {GB}\ntotal_active_file {GB}\n"
    write(root, {f"{place}/memory.limit_in_bytes": str(6 * GB), f"{place}/memory.usage_in_bytes": str(3 * GB),
                 f"{place}/memory.stat": stat})  # fmt: skip
    assert available_memory(root) == 5 * GB


def test_an_older_group_of_its_own(root):
    """Beside one of another controller, and in one that is wider."""
    write(root, {"proc/self/cgroup": "9:pids:/x\n4:cpu,memory:/a/b\n0::/\n"})
    for at, limit in (("", 2**62), ("/a", 4 * GB), ("/x", 0)):
        place = f"sys/fs/cgroup/memory{at}"
        write(root, {f"{place}/memory.limit_in_bytes": str(limit), f"{place}/memory.usage_in_bytes": str(GB),
                     f"{place}/memory.stat": "total_inactive_file 0\ntotal_active_file 0\n"})  # fmt: skip
    assert available_memory(root) == 3 * GB


def test_no_linux(tmp_path):
    assert available_memory(tmp_path) > 0
