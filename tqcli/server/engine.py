"""One thread runs the model; requests wait in a queue, and what is written goes to the event loop as it comes.

The event loop never waits for the model. A request that nobody waits for any more is dropped: from the queue at once,
while it runs after the step that is under way.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tqcli.server.decoding import Decoder, Generation
from tqcli.server.errors import ApiError, failed, queue_full, stopping
from tqcli.server.fair_queue import Closed, FairQueue, Full
from tqcli.server.metrics import Metrics
from tqcli.server.writing import Writer, Written

_LOG = logging.getLogger(__name__)
_LONGEST_WAIT = 60

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Finished:
    """The end of an answer. tokens: that were written, the one that ended it included."""

    reason: Reason
    tokens: int


Event = Written | Finished | ApiError


@dataclass(eq=False)
class Job:
    """A request on its way. `events` ends with a Finished or an ApiError."""

    generation: Generation
    client: str
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: float = field(default_factory=time.monotonic)

    def send(self, event: Event) -> None:
        """From any thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:
            # The loop is closed: nobody listens.
            self.cancelled.set()


class Engine:
    """The queue and its thread."""

    def __init__(
        self,
        decoder: Decoder,
        decode: Callable[[list[int]], str],
        end_tokens: frozenset[int],
        metrics: Metrics,
        max_waiting: int,
    ) -> None:
        """decode: token ids to text, for the engine's thread alone. end_tokens: they end an answer."""
        self._decoder = decoder
        self._decode = decode
        self._end_tokens = end_tokens
        self._metrics = metrics
        self._queue: FairQueue[Job] = FairQueue(max_waiting)
        self._running: Job | None = None
        self._stopping = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tq-model", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether requests are taken and answered."""
        return self._thread.is_alive() and not self._stopping.is_set()

    @property
    def running(self) -> int:
        """Requests being answered: 0 or 1."""
        return int(self._running is not None)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def submit(self, generation: Generation, client: str) -> Job:
        """From the event loop. Raises ApiError: 429 where too many wait, 503 while the server stops."""
        job = Job(generation, client, asyncio.get_running_loop())
        try:
            if not self.healthy:
                raise Closed
            self._queue.put(client, job)
        except Full as error:
            self._metrics.request_ended("refused")
            raise queue_full(self.waiting, self._wait_seconds()) from error
        except Closed as error:
            raise stopping() from error
        return job

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more. Does nothing to a job that has ended."""
        job.cancelled.set()
        if self._queue.remove(job.client, job):
            self._metrics.request_ended("cancelled")

    def refuse(self) -> None:
        """Take no more requests; those that wait are told so, the running one goes on."""
        self._stopping.set()
        for job in self._queue.close():
            self._metrics.request_ended("cancelled")
            job.send(stopping())

    def abandon(self) -> None:
        """Cancel the running request too."""
        self.refuse()
        self._abandoned.set()

    def stop(self, seconds: float) -> bool:
        """`abandon`, and wait for the thread. Whether it ended in time; a step of the model cannot be interrupted."""
        self.abandon()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _wait_seconds(self) -> int:
        wanted = self._metrics.whole_request.mean * (self.waiting + 1)
        return max(1, min(_LONGEST_WAIT, math.ceil(wanted)))

    def _work(self) -> None:
        while True:
            try:
                job = self._queue.take()
            except Closed:
                return
            self._running = job
            try:
                end = self._answer(job)
            except Exception:
                # Whatever it was, the next request may be answered.
                _LOG.exception("a request failed")
                self._metrics.request_ended("failed")
                end = failed()
            self._running = None
            job.send(end)

    def _answer(self, job: Job) -> Event:
        generation = job.generation
        writer = Writer(self._decode, generation.prompt, generation.stops, logprobs=generation.top_logprobs is not None)
        reason, number = self._write(job, writer)
        self._metrics.count_tokens("prompt", len(generation.prompt))
        self._metrics.count_tokens("generation", number)
        if reason is None:
            self._metrics.request_ended("cancelled")
            return stopping()
        if rest := writer.end():
            job.send(rest)
        if writer.stopped:
            reason = "stop"
        self._metrics.request_ended(reason)
        self._metrics.whole_request.observe(time.monotonic() - job.begun)
        return Finished(reason, number)

    def _write(self, job: Job, writer: Writer) -> tuple[Reason | None, int]:
        """Why it ended, None for cancelled, and the number of tokens."""
        generation = job.generation
        last = job.begun
        number = 0
        tokens = self._decoder.tokens(generation, lambda: job.cancelled.is_set() or self._abandoned.is_set())
        for number, picked in enumerate(tokens, 1):
            now = time.monotonic()
            (self._metrics.between_tokens if number > 1 else self._metrics.first_token).observe(now - last)
            last = now
            if picked.token in self._end_tokens and not generation.ignore_eos:
                return "stop", number
            if written := writer.add(picked):
                job.send(written)
            if writer.stopped:
                return "stop", number
            if number == generation.max_tokens:
                return "length", number
        return None, number
