"""`tq serve` as a process of its own, from the first line that it prints to its exit status."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAIN = "from tqcli.cli.main import main; main()"
# One token takes at least so long; what a test wants to happen while an answer is written then does.
_SLOW = """
import time
from tqcli.server.decoding import Decoder
forward = Decoder._forward
def slow(self, tokens, cache):
    time.sleep(0.02)
    return forward(self, tokens, cache)
Decoder._forward = slow
"""


class ServerProcess:
    """url: where it listens, once it is ready. lines: what it has printed so far."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], *, slow: bool) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TQ_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", (_SLOW if slow else "") + _MAIN, "serve", str(folder), "--port", "0", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr))
        self._reader.start()
        self.url = ""
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("ready"):
                self.url = line.split()[1]
                break

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return status


@contextmanager
def running(folder: Path, *arguments: str, slow: bool = False) -> Iterator[ServerProcess]:
    """A server that is ready, and is gone afterwards."""
    server = ServerProcess(folder, arguments, slow=slow)
    try:
        assert server.url, server.errors
        yield server
    finally:
        server.process.kill()
        server.wait()
        server.process.stdout.close()
        server.process.stderr.close()
