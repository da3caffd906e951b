"""A model made ready to answer: its tokenizer, its limits and its defaults, in one place for the routes."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqcli.server.decoding import Decoder, Generation
from tqcli.server.engine import Engine
from tqcli.server.errors import bad_request
from tqcli.server.fields import ChatRequest, CompletionRequest
from tqcli.server.metrics import Metrics
from tqcli.server.prompts import Prompts
from tqcli.server.sampling import Sampling

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Settings:
    """What the person who serves decides.

    names: under which the model is asked for, the first one being shown in answers. max_model_len: tokens of prompt and
    answer together. max_waiting: requests. grace: seconds that a running request has when the server stops.
    """

    names: tuple[str, ...]
    max_model_len: int
    api_key: str | None = field(default=None, repr=False)
    max_waiting: int = 64
    grace: float = 5.0


@dataclass(frozen=True)
class Service:
    """Everything that a route needs."""

    settings: Settings
    engine: Engine
    prompts: Prompts
    metrics: Metrics
    token_text: Callable[[int], str]
    defaults: Mapping[str, Any]
    max_new_tokens: int | None
    created: int = field(default_factory=lambda: int(time.time()))

    def generation(self, request: ChatRequest | CompletionRequest, prompt: tuple[int, ...]) -> Generation:
        """What the engine is asked for. Raises ApiError, 400, where the context is too short."""
        given = {name: value for name in _DEFAULTS if (value := getattr(request, name)) is not None}
        sampling = Sampling(
            **{**self.defaults, **given},
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            seed=request.seed,
        )
        return Generation(
            prompt, self._max_tokens(request, len(prompt)), sampling, request.stops, _top(request), request.ignore_eos
        )

    def _max_tokens(self, request: ChatRequest | CompletionRequest, prompt: int) -> int:
        limit = self.settings.max_model_len
        if prompt >= limit:
            field_name = "messages" if isinstance(request, ChatRequest) else "prompt"
            raise bad_request(f"the prompt has {prompt} tokens, of at most {limit} with the answer", field_name)
        left = limit - prompt
        name = "max_tokens" if getattr(request, "max_completion_tokens", None) is None else "max_completion_tokens"
        asked: int | None = getattr(request, name)
        if asked is None:
            return min(left, self.max_new_tokens or left)
        if name not in request.model_fields_set:
            # A default of ours, nobody's wish.
            return min(left, asked)
        if asked > left:
            raise bad_request(f"`{name}` is {asked}, but a prompt of {prompt} tokens leaves {left} of {limit}", name)
        return asked


def make_service(model: Any, tokenizer: Any, new_cache: Callable[[], Any], settings: Settings) -> Service:
    """From what `tqcli.load` gives. new_cache: an empty cache of keys and values."""
    metrics = Metrics()
    end_tokens = _end_tokens(model, tokenizer)
    engine = Engine(
        Decoder(model, new_cache),
        lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)),
        end_tokens,
        metrics,
        settings.max_waiting,
    )
    generation = model.generation_config
    return Service(
        settings=settings,
        engine=engine,
        prompts=Prompts(tokenizer, _vocabulary(model)),
        metrics=metrics,
        token_text=_TokenText(tokenizer),
        defaults={name: value for name in _DEFAULTS if (value := getattr(generation, name, None)) is not None},
        max_new_tokens=generation.max_new_tokens,
    )


class _TokenText:
    """Single tokens as text, for the event loop, with a tokenizer of its own."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)

    def __call__(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """All that the model's generation config names, and the tokenizer's own."""
    named = model.generation_config.eos_token_id
    found = {named} if isinstance(named, int) else set(named or ())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)


def _top(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.logprobs
    return (request.top_logprobs or 0) if request.logprobs else None
