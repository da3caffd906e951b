"""Answers in the shapes that OpenAI's clients read, whole and in pieces."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from tqcli.server.engine import Finished
from tqcli.server.sampling import Picked
from tqcli.server.writing import Written

Tokens = Sequence[tuple[Picked, int]]


def usage(prompt_tokens: int, written: int) -> dict[str, int]:
    """Numbers of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


class Reply:
    """What chat and plain completions have in common. One object an answer."""

    prefix = ""
    whole = ""
    piece = ""

    def __init__(self, model: str, prompt_tokens: int, token_text: Callable[[int], str]) -> None:
        """token_text: one token as text, special ones too."""
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._prompt_tokens = prompt_tokens
        self._token_text = token_text

    def first(self) -> dict[str, Any] | None:
        """The event that begins a stream."""
        return None

    def event(self, written: Written) -> dict[str, Any]:
        """A piece of a stream."""
        return self._event(self._piece(written.text), self._logprobs(written.tokens), None)

    def last(self, finished: Finished) -> dict[str, Any]:
        """The event that says why it ended."""
        return self._event(self._piece(""), None, finished.reason)

    def usage_event(self, finished: Finished) -> dict[str, Any]:
        """The event for `stream_options.include_usage`."""
        counts = usage(self._prompt_tokens, finished.tokens)
        return {**self._head, "object": self.piece, "choices": [], "usage": counts}

    def answer(self, pieces: Sequence[Written], finished: Finished) -> dict[str, Any]:
        """The whole at once."""
        tokens = [token for piece in pieces for token in piece.tokens]
        choice = {
            "index": 0,
            **self._content("".join(piece.text for piece in pieces)),
            "logprobs": self._logprobs(tokens),
            "finish_reason": finished.reason,
        }
        counts = usage(self._prompt_tokens, finished.tokens)
        return {**self._head, "object": self.whole, "choices": [choice], "usage": counts}

    def _event(self, content: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "object": self.piece, "choices": [choice]}

    def _content(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(self, tokens: Tokens) -> dict[str, Any] | None:
        raise NotImplementedError


class ChatReply(Reply):
    """`/v1/chat/completions`."""

    prefix, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> dict[str, Any]:
        """Who speaks."""
        return self._event({"delta": {"role": "assistant", "content": ""}}, None, None)

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _piece(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, tokens: Tokens) -> dict[str, Any] | None:
        if not tokens:
            return None
        content = [
            {**self._entry(picked.token, picked.logprob), "top_logprobs": [self._entry(*one) for one in picked.top]}
            for picked, _ in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token_text(token)
        # A part of a character has no text of its own, and so no bytes that could be told.
        return {"token": text, "logprob": _finite(logprob), "bytes": None if "\ufffd" in text else list(text.encode())}


class CompletionReply(Reply):
    """`/v1/completions`."""

    prefix, whole, piece = "cmpl", "text_completion", "text_completion"

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _piece(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, tokens: Tokens) -> dict[str, Any] | None:
        if not tokens:
            return None
        return {
            "tokens": [self._token_text(picked.token) for picked, _ in tokens],
            "token_logprobs": [_finite(picked.logprob) for picked, _ in tokens],
            "top_logprobs": [self._by_text(picked.top) for picked, _ in tokens],
            "text_offset": [offset for _, offset in tokens],
        }

    def _by_text(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, logprob in top:
            # Parts of characters look alike; the likeliest is the one that counts.
            found.setdefault(self._token_text(token), _finite(logprob))
        return found


def _finite(logprob: float) -> float:
    """As OpenAI says what is impossible; JSON has no infinity."""
    return max(logprob, -9999.0)
