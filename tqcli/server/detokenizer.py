"""Tokens to text, one by one: nothing is said before its bytes are whole, and nothing that was said changes."""

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
# So many tokens of the prompt tell how the first token of the answer joins it, such as with a space.
_CONTEXT = 6


class Detokenizer:
    """The text of one answer as it grows."""

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = ()) -> None:
        """decode: token ids to text; what it gives for a window of tokens must not depend on what follows it."""
        self._decode = decode
        self._tokens = list(prompt[-_CONTEXT:])
        self._begin = 0
        self._said = len(self._tokens)

    def add(self, token: int) -> str:
        """What can be said now; empty while a character's bytes are not all there."""
        self._tokens.append(token)
        new = self._unsaid()
        if not new or new.endswith(_INCOMPLETE):
            return ""
        # The next text is told from the one before it, so the window moves on by what was said.
        self._begin, self._said = self._said, len(self._tokens)
        return new

    def end(self) -> str:
        """What was held back: bytes that are no character."""
        new = self._unsaid()
        self._said = len(self._tokens)
        return new

    def _unsaid(self) -> str:
        before = self._decode(self._tokens[self._begin : self._said])
        return self._decode(self._tokens[self._begin :])[len(before) :]
