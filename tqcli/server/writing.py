"""One answer as its client sees it: tokens become pieces of text, log probabilities go with the text they belong to."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqcli.server.detokenizer import Detokenizer
from tqcli.server.sampling import Picked
from tqcli.server.stops import StopStrings


@dataclass(frozen=True)
class Written:
    """A piece of the answer: text, and the tokens that begin in it with where they do, in characters."""

    text: str
    tokens: tuple[tuple[Picked, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


class Writer:
    """Turns the tokens of one answer into pieces of it. What a stop string cuts off is never given, nor its tokens."""

    def __init__(
        self, decode: Callable[[list[int]], str], prompt: Sequence[int], stops: Sequence[str], *, logprobs: bool
    ) -> None:
        self._detokenizer = Detokenizer(decode, prompt)
        self._stops = StopStrings(stops)
        self._logprobs = logprobs
        self._waiting: deque[tuple[Picked, int]] = deque()
        # Characters that were decoded, and that were given.
        self._decoded = 0
        self._given = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        return self._stops.stopped

    def add(self, picked: Picked) -> Written:
        """What can be given now."""
        if self._logprobs:
            self._waiting.append((picked, self._decoded))
        new = self._detokenizer.add(picked.token)
        self._decoded += len(new)
        return self._give(self._stops.add(new))

    def end(self) -> Written:
        """What is left when no token follows. A stop string may come with it."""
        rest = self._stops.add(self._detokenizer.end())
        if not self._stops.stopped:
            rest += self._stops.end()
        given = self._give(rest)
        if self._stops.stopped or not self._waiting:
            return given
        left = tuple(self._waiting)
        self._waiting.clear()
        return Written(given.text, given.tokens + left)

    def _give(self, text: str) -> Written:
        self._given += len(text)
        tokens = []
        while self._waiting and self._waiting[0][1] < self._given:
            tokens.append(self._waiting.popleft())
        return Written(text, tuple(tokens))
