"""What this machine offers: memory that is free for this process, vLLM, a GPU."""

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_GROUPS = Path("sys/fs/cgroup")


@dataclass(frozen=True)
class Vllm:
    """An installed vLLM. device: `cuda` or `cpu`, what it would run on here."""

    version: str
    device: str

    @property
    def release(self) -> tuple[int, ...]:
        """The first two numbers of the version; (0, 0) for one that has none."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return tuple(map(int, found.groups())) if found else (0, 0)


def find_vllm() -> Vllm | None:
    """The vLLM of this Python; looking for a GPU imports torch, so only where there is one."""
    if importlib.util.find_spec("vllm") is None:
        return None
    try:
        found = version("vllm")
    except PackageNotFoundError:
        # `vllm serve` asks for its version too, and dies without.
        return None
    # A build for CPUs says so in its version, and takes no GPU.
    on_gpu = "cpu" not in found and _has_gpu()
    return Vllm(found, "cuda" if on_gpu else "cpu")


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that may still be taken: the machine's, or what the control groups of this process leave.

    root: where `proc` and `sys` are.
    """
    groups = [_left(group, "memory.max", "memory.current", "") for group in _groups(root, "", root / _GROUPS)]
    older = [
        _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        for group in _groups(root, "memory", root / _GROUPS / "memory")
    ]
    return min(found for found in (_of_machine(root), *groups, *older) if found is not None)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _of_machine(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups(root: Path, controller: str, top: Path) -> Iterator[Path]:
    """The control group of this process and those around it. controller: empty for groups of the newer kind."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    # number:controllers:/path, as in 0::/a or 4:cpu,memory:/a
    fields = (line.split(":", 2) for line in lines if line.count(":") >= 2)
    own = next((path.lstrip("/") for _, names, path in fields if controller in names.split(",")), "")
    # In a container the path may be the host's; the container's own group is then the top.
    yield from (group for group in (top / own, *(top / own).parents) if group.is_relative_to(top))


def _left(group: Path, limit: str, used: str, prefix: str) -> int | None:
    """What a group may still take; files that it has read and could drop do not count. None: it has no limit."""
    try:
        most, taken = int((group / limit).read_text()), int((group / used).read_text())
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        kinds = {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return None
    dropped = kinds.get(f"{prefix}inactive_file", 0) + kinds.get(f"{prefix}active_file", 0)
    return max(0, most - max(0, taken - dropped))
