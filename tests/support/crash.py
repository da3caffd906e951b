"""Kill a run of `tq` at its n-th step on the disk, in a forked process, so that every such point can be tried."""

import os
import signal
import sys
from pathlib import Path

_STEPS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "os.chmod")


def steps_of(*arguments: object) -> int:
    """How many steps on the disk a whole run takes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run(arguments, -1, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the run ended with {status}"
    return int(text)


def kill_at(step: int, *arguments: object) -> None:
    """Run and be killed (SIGKILL) just before the step."""
    child = os.fork()
    if child == 0:
        _run(arguments, step, None)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"not killed at {step}: {status}"


def _run(arguments: tuple[object, ...], last: int, report: int | None) -> None:
    code = 99
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        count = 0

        def step() -> None:
            nonlocal count
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        _watch(step)
        from support.command import tq

        code = tq(*arguments).code
        if report is not None:
            os.write(report, str(count).encode())
    finally:
        os._exit(code)


def _watch(step) -> None:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in _STEPS or (writes and not str(arguments[0]).startswith(("/dev", "/proc"))):
            step()

    sys.addaudithook(hook)
    for name in ("pwrite", "fsync", "ftruncate", "posix_fallocate"):
        setattr(os, name, _before(getattr(os, name), step))


def _before(function, step):
    def stepped(*arguments):
        step()
        return function(*arguments)

    return stepped


def looks_whole(folder: Path) -> bool:
    """Whether a reader could take the folder for a finished conversion."""
    return (folder / "config.json").exists() and not (folder / ".tq-journal.jsonl").exists()
