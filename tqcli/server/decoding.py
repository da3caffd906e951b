"""The model, token by token: the prompt in pieces, then one step a token, and a look between all of them at whether
anybody still wants the answer.

Left out: text, which is `writing`, and threads, which are `engine`.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tqcli.server.sampling import Picked, Sampler, Sampling

# A piece is what a cancelled request has to wait for at most.
PROMPT_PIECE = 512


@dataclass(frozen=True)
class Generation:
    """One answer to give. prompt: token ids, at least one. top_logprobs: None for none at all."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    top_logprobs: int | None = None
    ignore_eos: bool = False


class Decoder:
    """A transformers model that writes."""

    def __init__(self, model: Any, new_cache: Callable[[], Any]) -> None:
        """new_cache: an empty cache of keys and values for one sequence."""
        self._model = model
        self._new_cache = new_cache
        accepted = inspect.signature(model.forward).parameters
        # Otherwise the head is computed for every token of the prompt.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        # transformers renames it.
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"

    def tokens(self, generation: Generation, is_cancelled: Callable[[], bool]) -> Iterator[Picked]:
        """Tokens without end; the caller stops. It ends by itself, early, once nobody wants it."""
        cache = self._new_cache()
        sampler = Sampler(generation.sampling, generation.prompt, generation.top_logprobs)
        logits: torch.Tensor | None = None
        for piece in _pieces(generation.prompt):
            if is_cancelled():
                return
            logits = self._forward(piece, cache)
        while logits is not None and not is_cancelled():
            picked = sampler.pick(logits)
            yield picked
            if is_cancelled():
                return
            logits = self._forward([picked.token], cache)

    @torch.inference_mode()
    def _forward(self, tokens: Sequence[int], cache: Any) -> torch.Tensor:
        """Logits after the last token, (vocabulary,)."""
        ids = torch.tensor([list(tokens)], device=self._model.device)
        output = self._model(input_ids=ids, use_cache=True, **{self._cache_name: cache}, **self._last_only)
        logits: torch.Tensor = output.logits[0, -1]
        return logits


def _pieces(prompt: Sequence[int]) -> Iterator[Sequence[int]]:
    for begin in range(0, len(prompt), PROMPT_PIECE):
        yield prompt[begin : begin + PROMPT_PIECE]
