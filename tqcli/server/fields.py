"""What a request may say. A field that would be ignored is refused by name, unless its value asks for nothing."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, ValidationError

from tqcli.server.errors import ApiError, bad_request

# Values that change nothing, of fields that are not supported otherwise. Any field may be null.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "store": (False,), "service_tier": ("auto", "default"),
}  # fmt: skip
# They say who asks and what for, never what to answer.
_LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")
_REFUSED = ("audio", "prediction", "reasoning_effort", "verbosity", "web_search_options", "guided_json", "guided_regex")

_MAX_STOPS = 16
_MAX_STOP_LENGTH = 1000
_MAX_SEED = (1 << 63) - 1

# Nobody's request has more; pydantic would tell of each of a million wrong entries.
_MAX_ENTRIES = 4096
_MAX_KEYS = 64

Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_LENGTH)]
Prompt = str | list[str] | list[int] | list[list[int]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """include_usage: a last event with the number of tokens."""

    include_usage: bool = False


class _Common(_Strict):
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=-_MAX_SEED, le=_MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=_MAX_STOPS)] | None = None
    ignore_eos: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None

    @property
    def text(self) -> str:
        """Its pieces, joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_Common):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionRequest(_Common):
    """`/v1/completions`. prompt: text, token ids, or a list of one of them."""

    # Of a million token ids pydantic would try to make texts first.
    prompt: Annotated[Prompt, SkipValidation]
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)


Request = TypeVar("Request", ChatRequest, CompletionRequest)


def parse_request(kind: type[Request], body: dict[str, Any]) -> Request:
    """Raises ApiError, 400, that names the first field that cannot be taken."""
    try:
        request = kind.model_validate(_without_neutral(body, frozenset(kind.model_fields)))
    except ValidationError as error:
        raise _explained(error) from error
    if request.stream_options is not None and not request.stream:
        raise bad_request("`stream_options` is there without `stream`", "stream_options")
    if isinstance(request, ChatRequest):
        _check_chat(request)
    elif not _is_prompt(request.prompt):
        raise bad_request("`prompt` is neither a text, nor a list of texts or of token ids", "prompt")
    return request


def _is_prompt(value: Any) -> bool:
    if not isinstance(value, list):
        return isinstance(value, str)
    # A truth value counts as a number in Python.
    is_tokens = all(type(one) is int and one >= 0 for one in value)
    is_texts = all(isinstance(one, str) for one in value)
    is_lists = all(isinstance(one, list) and one and all(type(x) is int and x >= 0 for x in one) for one in value)
    return bool(value) and (is_tokens or is_texts or is_lists)


def _check_chat(request: ChatRequest) -> None:
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("`top_logprobs` is there without `logprobs`", "top_logprobs")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise bad_request("`max_tokens` and `max_completion_tokens` cannot go together", "max_tokens")
    for i, message in enumerate(request.messages):
        if message.name is not None:
            raise bad_request("names of participants are not supported", f"messages.{i}.name")


def _without_neutral(body: dict[str, Any], supported: frozenset[str]) -> dict[str, Any]:
    kept = {}
    for name, value in body.items():
        if value is None or name in _LABELS:
            continue
        if name not in supported:
            _check_neutral(name, value)
            continue
        if name != "prompt":
            _check_size(name, value)
        kept[name] = value
    return kept


def _check_size(name: str, value: Any) -> None:
    if isinstance(value, list):
        if len(value) > _MAX_ENTRIES:
            raise bad_request(f"`{name}` has more than {_MAX_ENTRIES} entries", name)
        for one in value:
            _check_size(name, one)
    elif isinstance(value, dict):
        if len(value) > _MAX_KEYS:
            raise bad_request(f"`{name}` has an object of more than {_MAX_KEYS} fields", name)
        for one in value.values():
            _check_size(name, one)


def _check_neutral(name: str, value: Any) -> None:
    if name == "n" and value != 1:
        raise bad_request("only `n` = 1 is supported: one answer for each request", name)
    if any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL.get(name, ())):
        return
    known = name in _NEUTRAL or name in _REFUSED
    shown = name[:100]
    raise bad_request(f"`{shown}` is not supported here" if known else f"there is no field `{shown}`", shown)


def _explained(error: ValidationError) -> ApiError:
    """The most specific of pydantic's errors: where a field may have several types, the one it nearly has."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    field = errors[0]["loc"][0]
    # Of two that are as deep, not the one that would have liked another type.
    found = max(
        (one for one in errors if one["loc"][0] == field),
        key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")),
    )
    where = ".".join(str(part) for part in found["loc"] if not _is_type(str(part)))
    if found["type"] == "missing":
        return bad_request(f"`{where}` is missing", where)
    if found["type"] == "extra_forbidden":
        return bad_request(f"`{where[:100]}` is not supported here", where[:100])
    if where.endswith(".type"):
        return bad_request(f"`{where}`: only text can be read here", where)
    return bad_request(f"`{where}`: {found['msg']}", where)


def _is_type(part: str) -> bool:
    """Whether it is pydantic's name of one of several types, and nothing of the body."""
    return part in ("str", "int") or part.startswith("constrained-") or "[" in part
