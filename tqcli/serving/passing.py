"""Run a program whose output is read on its way through; for its user it is as if it ran in this process's place.

Each piece of output goes out as it comes, on the stream it came from, whether a line is complete or not. Signals are
the program's, and so is the exit status. The program has a session of its own, so that Ctrl-C reaches it once.

Left out: a terminal. What the program writes goes through pipes, so it will not use colours.
"""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

from tqcli.errors import TqError

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PIECE = 1 << 16
# A longer line is looked at in parts.
_LONGEST_LINE = 1 << 16
_POLL = 0.5
_GRACE = 30.0


class Watch(Protocol):
    """Who reads the lines. amiss: the program is to be stopped, unless what it has already written says otherwise."""

    @property
    def amiss(self) -> bool: ...  # noqa: D102

    def see(self, line: bytes) -> None: ...  # noqa: D102

    def failure(self) -> TqError: ...  # noqa: D102


def run_watched(program: Sequence[str], environment: Mapping[str, str], watch: Watch) -> int:
    """The exit status, negative for a signal as in `subprocess`. Raises what `watch` says when it has it stopped."""
    with _forwarding() as forwarding:
        process = subprocess.Popen(  # noqa: S603  # the program is ours, and no shell is between
            list(program),
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        forwarding.to(process)
        streams = _Streams(process, watch)
        if streams.pass_on():
            return process.wait()
        process.terminate()
        streams.pass_on(time.monotonic() + _GRACE)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise watch.failure()


def die_of(number: int) -> NoReturn:
    """End this process by a signal, so that whoever waits for it sees what ended the program."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)


class _Streams:
    """The program's two streams, and ours that they go to."""

    def __init__(self, process: "subprocess.Popen[bytes]", watch: Watch) -> None:
        self._process = process
        self._watch = watch
        self._begun: dict[int, bytes] = {}
        self._selector = selectors.DefaultSelector()
        for target, stream in ((1, process.stdout), (2, process.stderr)):
            self._selector.register(stream or target, selectors.EVENT_READ, target)

    def pass_on(self, deadline: float | None = None) -> bool:
        """Until the program ends, or the deadline; False as soon as the watch finds something amiss.

        With a deadline nothing can be amiss any more.
        """
        while self._selector.get_map():
            doubtful = deadline is None and self._watch.amiss
            # The streams come in no order: what makes up for it may wait in the other one.
            events = self._selector.select(0 if doubtful else _POLL)
            for key, _ in events:
                self._pass_piece(key.fileobj, key.data)
            if events:
                continue
            if doubtful:
                return False
            # Its own children may hold the streams longer than it lives.
            if self._process.poll() is not None or (deadline is not None and time.monotonic() > deadline):
                return True
        return self._ended(deadline)

    def _ended(self, deadline: float | None) -> bool:
        """Whether all is well when nothing more can be read."""
        return deadline is not None or not self._watch.amiss

    def _pass_piece(self, stream: Any, target: int) -> None:
        piece = os.read(stream.fileno(), _PIECE)
        self._look(target, piece)
        if not piece or not _write(target, piece):
            # With our reader gone the program must find its own gone too.
            self._selector.unregister(stream)
            stream.close()

    def _look(self, target: int, piece: bytes) -> None:
        *lines, rest = (self._begun.pop(target, b"") + piece).split(b"\n")
        if len(rest) > _LONGEST_LINE or (rest and not piece):
            lines, rest = [*lines, rest], b""
        self._begun[target] = rest
        for line in lines:
            self._watch.see(line)


class _Forwarding:
    """A handler that hands signals on, those from before the program was there too."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def __call__(self, number: int, frame: object) -> None:
        del frame
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)

    def to(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        for number in self._early:
            process.send_signal(number)


@contextmanager
def _forwarding() -> Iterator[_Forwarding]:
    forwarding = _Forwarding()
    # What is ignored, as after `nohup`, the program ignores by itself.
    mine = [number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forwarding) for number in mine}
    try:
        yield forwarding
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(target: int, piece: bytes) -> bool:
    """Whether there is still a reader."""
    try:
        while piece:
            piece = piece[os.write(target, piece) :]
    except BrokenPipeError:
        return False
    return True
