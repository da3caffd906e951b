"""A job's events to the client: one object at the end, or a stream of server-sent events.

A client that goes away takes its job with it.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from tqcli.server.engine import Engine, Finished, Job
from tqcli.server.errors import ApiError
from tqcli.server.replies import Reply
from tqcli.server.writing import Written

_DONE = "data: [DONE]\n\n"
# As web servers log it; there is nobody to read it.
_CLIENT_LEFT = 499


async def collect(request: Request, engine: Engine, job: Job, reply: Reply) -> dict[str, Any]:
    """The whole answer. Raises ApiError."""
    watch = asyncio.create_task(_watch(request, engine, job))
    pieces: list[Written] = []
    try:
        while True:
            event = await job.events.get()
            if isinstance(event, ApiError):
                raise event
            if isinstance(event, Finished):
                return reply.answer(pieces, event)
            pieces.append(event)
    finally:
        watch.cancel()
        engine.cancel(job)


async def stream(engine: Engine, job: Job, reply: Reply, *, with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events. One that fails half way ends with an error and without `[DONE]`."""
    try:
        if first := reply.first():
            yield _sent(first)
        while True:
            event = await job.events.get()
            if isinstance(event, ApiError):
                yield _sent(event.body())
                return
            if isinstance(event, Finished):
                break
            yield _sent(reply.event(event))
        yield _sent(reply.last(event))
        if with_usage:
            yield _sent(reply.usage_event(event))
        yield _DONE
    finally:
        engine.cancel(job)


async def _watch(request: Request, engine: Engine, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    engine.cancel(job)
    job.events.put_nowait(ApiError(_CLIENT_LEFT, "the client has left"))


def _sent(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
