"""Messages and texts to token ids, in a thread of its own, with a tokenizer of its own: neither is safe to share."""

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqcli.server.errors import bad_request
from tqcli.server.fields import Message

Result = TypeVar("Result")


class Prompts:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """vocabulary: number of token ids that the model knows."""
        self._tokenizer = copy.deepcopy(tokenizer)
        self._vocabulary = vocabulary
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tq-tokenizer")

    async def of_messages(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """A conversation, up to where the model's turn begins. Raises ApiError, 400."""
        return await self._run(lambda: self._chat(messages))

    async def of_prompt(self, prompt: str | list[str] | list[int] | list[list[int]]) -> tuple[int, ...]:
        """A text, with the special tokens that begin one, or token ids as they are. Raises ApiError, 400."""
        if isinstance(prompt, list) and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise bad_request("one prompt for each request", "prompt")
            return await self.of_prompt(prompt[0])
        if isinstance(prompt, str):
            return await self._run(lambda: self._text(prompt))
        return self._checked(prompt)

    def close(self) -> None:
        """No more texts."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        if not getattr(self._tokenizer, "chat_template", None):
            raise bad_request("this model has no chat template; `/v1/completions` takes plain text", "messages")
        # OpenAI's newer name of the same; templates know the older one.
        turns = [{"role": "system" if one.role == "developer" else one.role, "content": one.text} for one in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            # A template is a program that came with the model: it may raise anything, often on purpose.
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise bad_request(f"the chat template refuses these messages: {reason[:300]}", "messages") from error
        return self._checked(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, text: str) -> tuple[int, ...]:
        return self._checked(self._tokenizer(text)["input_ids"])

    def _checked(self, tokens: Sequence[Any]) -> tuple[int, ...]:
        if not tokens:
            raise bad_request("the prompt is empty", "prompt")
        if max(tokens) >= self._vocabulary:
            raise bad_request(f"token id {max(tokens)} is not in the vocabulary of {self._vocabulary}", "prompt")
        return tuple(tokens)
