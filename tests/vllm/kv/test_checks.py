"""What the compressed cache is not for ends the start, with a reason; what it is for passes."""

import enum
from types import SimpleNamespace

import pytest

from tqcli.errors import InputError
from tqcli.kv.settings import Widths
from tqcli.runtime.vllm.kv.asked import asked_settings
from tqcli.runtime.vllm.kv.checks import check_engine, check_layer
from tqcli.runtime.vllm.kv.register import register


class Kind(enum.StrEnum):
    DECODER = "decoder"
    ENCODER_ONLY = "encoder_only"
    ENCODER_DECODER = "encoder_decoder"


LAYER = {"attn_type": Kind.DECODER, "kv_cache_dtype": "auto", "alibi_slopes": None, "sinks": None, "further": {}}


def parallel(decode, prefill):
    return SimpleNamespace(decode_context_parallel_size=decode, prefill_context_parallel_size=prefill)


def engine(**changes):
    plain = {
        "kv_transfer_config": None,
        "model_config": SimpleNamespace(is_hybrid=False),
        "parallel_config": parallel(1, 1),
    }
    return SimpleNamespace(**plain | changes)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"attn_type": Kind.ENCODER_ONLY}, "attention of kind `encoder_only`"),
        ({"attn_type": "encoder_decoder"}, "attention of kind `encoder_decoder`"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"kv_cache_dtype": "turboquant_k8v4"}, "--kv-cache-dtype turboquant_k8v4"),
        ({"alibi_slopes": [1.0]}, "ALiBi"),
        ({"sinks": [1.0]}, "attention sinks"),
        ({"further": {"use_irope": True}}, "attention with use_irope"),
    ],
)
def test_layers_that_are_refused(changed, reason):
    with pytest.raises(InputError, match="the compressed key-value cache does not work with") as caught:
        check_layer(**LAYER | changed)
    assert reason in str(caught.value)
    assert "unset TQ_KV" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"kv_transfer_config": object()}, "--kv-transfer-config"),
        ({"model_config": SimpleNamespace(is_hybrid=True)}, "recurrent layers"),
        ({"parallel_config": parallel(2, 1)}, "shared"),
        ({"parallel_config": parallel(1, 2)}, "shared"),
    ],
)
def test_engines_that_are_refused(changed, reason):
    with pytest.raises(InputError, match=reason):
        check_engine(engine(**changed))


def test_what_passes():
    check_layer(**LAYER)
    check_layer(**LAYER | {"attn_type": "decoder"})
    check_engine(engine())
    check_engine(engine(model_config=None))


@pytest.mark.parametrize("text", ["k4", "4,3", "", "k9v3", "k4v1", "k4v3\n"])
def test_a_value_that_makes_no_sense(monkeypatch, text):
    monkeypatch.setenv("TQ_KV", text)
    for ask in (asked_settings, register):
        with pytest.raises(InputError) as caught:
            ask()
        assert caught.value.what == f"`TQ_KV={text}` is no key-value cache"
        assert caught.value.why
        assert caught.value.fix


def test_nothing_is_asked_for(monkeypatch):
    monkeypatch.delenv("TQ_KV", raising=False)
    assert asked_settings() is None
    register()
    monkeypatch.setenv("TQ_KV", "none")
    assert asked_settings() is None
    register()


def test_no_token_of_a_paged_cache_stays_in_full_precision(monkeypatch):
    monkeypatch.setenv("TQ_KV", "k8v4")
    settings = asked_settings()
    assert settings.widths == Widths(8, 4)
    assert settings.packed_tokens(1000, settings.sink_tokens) == 1000
