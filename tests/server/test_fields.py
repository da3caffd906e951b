"""Bodies: taken, or refused with the name of the field. Nothing is ignored."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqcli.server.body import parse
from tqcli.server.errors import ApiError
from tqcli.server.fields import ChatRequest, CompletionRequest, parse_request

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}


def chat(**more):
    return parse_request(ChatRequest, CHAT | more)


def refusal(kind, body) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(kind, body)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 1), ("logit_bias", {}), ("tools", []), ("tools", None), ("tool_choice", "none"), ("user", "me"),
        ("response_format", {"type": "text"}), ("parallel_tool_calls", True), ("store", False), ("metadata", {}),
        ("reasoning_effort", None), ("temperature", None), ("stop", None), ("stop", []), ("stream_options", None),
        ("presence_penalty", 0), ("temperature", 0), ("temperature", 2), ("top_k", -1), ("seed", -5),
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_taken(field, value):
    assert chat(**{field: value}).model == "m"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2), ("n", 0), ("n", True), ("tools", [{"type": "function"}]), ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}), ("logit_bias", {"5": 1}), ("reasoning_effort", "low"),
        ("guided_json", {}), ("store", True), ("best_of", 2), ("functions", [{}]), ("store", 0), ("nonsense", 1),
        ("temperature", -1), ("temperature", "1"), ("temperature", True), ("top_p", 0), ("top_p", 1.5), ("top_k", 0.5),
        ("seed", 2**64), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.5), ("max_completion_tokens", "5"),
        ("stream", "yes"), ("stream_options", {"include_usage": True}), ("stop", ["x"] * 17), ("top_logprobs", 5),
        ("logprobs", 1), ("messages", []), ("messages", None), ("messages", "hi"), ("model", 5), ("model", None),
        ("frequency_penalty", 3), ("repetition_penalty", 0), ("ignore_eos", 1), ("echo", True), ("suffix", "x"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_or_makes_no_sense_is_refused_by_name(field, value):
    error = refusal(ChatRequest, CHAT | {field: value})
    assert error.parameter == field
    assert f"`{field}`" in error.message


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("stop", [""], "stop.0"), ("stop", ["a", 5], "stop.1"), ("stop", "x" * 1001, "stop"),
        ("messages", [{"role": "user"}], "messages.0.content"),
        ("messages", [{"content": "x"}], "messages.0.role"),
        ("messages", [{"role": "tool", "content": "x"}], "messages.0.role"),
        ("messages", [{"role": "user", "content": None}], "messages.0.content"),
        ("messages", [{"role": "user", "content": "x", "tool_calls": []}], "messages.0.tool_calls"),
        ("messages", [{"role": "user", "content": "x", "name": "me"}], "messages.0.name"),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
         "messages.0.content.0.type"),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
        ("messages", ["hi"], "messages.0"),
    ],
)  # fmt: skip
def test_what_is_inside_is_named_too(field, value, named):
    assert refusal(ChatRequest, CHAT | {field: value}).parameter == named


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (CompletionRequest, "prompt", [1] * 2_000_000 + ["x"]),
        (ChatRequest, "messages", [{}] * 1_000_000),
        (ChatRequest, "messages", [{str(number): 1 for number in range(300_000)}]),
        (ChatRequest, "messages", [{"role": "user", "content": [{}] * 1_000_000}]),
        (ChatRequest, "stop", [""] * 1_000_000),
    ],
    ids=["prompt", "messages", "keys", "content", "stop"],
)
def test_a_million_mistakes_do_not_hold_the_server_up(kind, field, value):
    begun = time.process_time()
    refusal(kind, (TEXT if kind is CompletionRequest else CHAT) | {field: value})
    assert time.process_time() - begun < 0.5


def test_settings_that_contradict_each_other():
    assert refusal(ChatRequest, CHAT | {"max_tokens": 5, "max_completion_tokens": 5}).parameter == "max_tokens"
    assert refusal(ChatRequest, CHAT | {"top_logprobs": 0}).parameter == "top_logprobs"
    assert chat(logprobs=True, top_logprobs=20).top_logprobs == 20


@pytest.mark.parametrize("prompt", ["", "hi", ["hi"], [1, 2], [[1, 2]], ["a", "b"]])
def test_prompts(prompt):
    assert parse_request(CompletionRequest, TEXT | {"prompt": prompt}).prompt == prompt


@pytest.mark.parametrize("prompt", [None, 5, [], [1, "a"], [-1], [1.5], {"a": 1}, [["a"]], [True]])
def test_what_is_no_prompt(prompt):
    assert (refusal(CompletionRequest, TEXT | {"prompt": prompt}).parameter or "").partition(".")[0] == "prompt"


def test_pieces_of_a_message_are_joined():
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": content}]).messages[0].text == "ab"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(sorted({*ChatRequest.model_fields, "n", "tools", "response_format", "other"}))


@given(st.dictionaries(_FIELDS, _JSON, max_size=4))
def test_whatever_comes_is_taken_or_refused(body):
    for kind, base in ((ChatRequest, CHAT), (CompletionRequest, TEXT)):
        try:
            parse_request(kind, base | body)
        except ApiError as error:
            assert error.status == 400
            assert error.message


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff{}", '{"a": 1}'.encode("utf-16"), b'{"temperature": NaN}',
        b'{"temperature": Infinity}', b"[" * 100_000, b'{"a":' * 100_000, b'{"seed": ' + b"9" * 10_000 + b"}",
        b'{"prompt": "\\ud800"}', b'{"\\udfff": 1}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_json_object(raw):
    with pytest.raises(ApiError) as caught:
        parse(raw)
    assert caught.value.status == 400


@given(st.binary(max_size=60))
def test_any_bytes(raw):
    try:
        assert isinstance(parse(raw), dict)
    except ApiError as error:
        assert error.status == 400
