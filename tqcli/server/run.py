"""The process: a socket that is bound before the model is loaded, uvicorn, and an end that is orderly.

On SIGTERM and Ctrl-C: nothing more is taken, what waits is told so, the running answer has some seconds to end.
"""

import asyncio
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import uvicorn

from tqcli.errors import MachineError
from tqcli.server.app import make_app
from tqcli.server.engine import Engine
from tqcli.server.service import Service

# After the grace, for the step that is under way and for the last words to clients.
_LAST_WORDS = 5


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody else can take any more. port 0 takes a free one. Raises MachineError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise MachineError(
            f"cannot listen on `{host}`, port {port}", why=error.strerror or str(error), fix="another `--port`"
        ) from error
    return bound


@contextmanager
def orderly_exit() -> Iterator[None]:
    """SIGTERM ends the process with status 0, while a model is being loaded too."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(service: Service, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve until a signal comes. Call it inside `orderly_exit`, from the main thread."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    config = uvicorn.Config(
        make_app(service),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(service.settings.grace) + _LAST_WORDS,
    )
    try:
        _Server(config, service.engine, service.settings.grace, on_ready).run(sockets=[listening])
    finally:
        if not service.engine.stop(0):
            # Its thread is inside a step that nothing can interrupt, and Python would tear down what it uses.
            os._exit(0)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine = engine
        self._grace = grace
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.refuse()
        timer = asyncio.get_running_loop().call_later(self._grace, self._engine.abandon)
        await super().shutdown(sockets)
        timer.cancel()


def _leave(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(0)
