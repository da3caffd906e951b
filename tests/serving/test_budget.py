"""What a context takes in memory, and the longest that fits."""

from types import SimpleNamespace

import pytest
from transformers import CONFIG_MAPPING

from tqcli.errors import InputError, MachineError
from tqcli.serving.budget import WORKING_BYTES, plan_memory
from tqcli.serving.subject import Subject

# 2 layers, 2 heads of 32 numbers in 16 bits, keys and values: 512 bytes a token.
CONFIG = CONFIG_MAPPING["qwen3"](
    hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    max_position_embeddings=10_000, dtype="bfloat16",
)  # fmt: skip


def subject(nbytes: int = 1000, decoded: int = 0) -> Subject:
    return Subject("out", None, "native", {}, 1, nbytes, decoded)


def plan(available: int, asked: int | None = None, kv: str = "none", decoded: int = 0):
    return plan_memory(subject(decoded=decoded), CONFIG, kv, asked, WORKING_BYTES + available)


def test_the_models_own_context_where_it_fits():
    found = plan(512 * 10_000)
    assert (found.context, found.shortened_from) == (10_000, None)
    assert found.cache_bytes == 512 * 10_000
    assert found.needed == WORKING_BYTES + 512 * 10_000


def test_shorter_where_it_does_not():
    found = plan(512 * 10_000 - 1)
    assert (found.context, found.shortened_from) == (9_999, 10_000)
    assert plan(512 * 256).context == 256


def test_too_short_to_be_of_use():
    with pytest.raises(MachineError, match="does not fit in memory"):
        plan(512 * 255)


def test_what_was_asked_for_is_not_shortened():
    assert plan(512 * 300, asked=300).context == 300
    with pytest.raises(MachineError, match="--max-model-len 300"):
        plan(512 * 300, asked=301)
    with pytest.raises(InputError, match="made for 10000 tokens"):
        plan(1 << 40, asked=10_001)


def test_decoded_weights_have_to_fit_too():
    assert plan(512 * 300 + 5_000, decoded=5_000).context == 300
    with pytest.raises(MachineError, match="decoded weights"):
        plan(5_000, decoded=5_000)


def test_a_compressed_cache_makes_room():
    plain, packed = plan(512 * 1000), plan(512 * 1000, kv="k4v3")
    assert packed.context > 3 * plain.context
    assert packed.cache.bytes_per_token < 512 / 3


def test_mapped_weights_need_not_fit():
    one = plan_memory(subject(nbytes=10**12), CONFIG, "none", 100, WORKING_BYTES + 10**6)
    assert one.pages_weights
    assert not plan_memory(subject(nbytes=1000), CONFIG, "none", 100, WORKING_BYTES + 10**6).pages_weights


def test_a_model_without_a_context():
    text = SimpleNamespace(num_hidden_layers=2, num_attention_heads=2, head_dim=32, dtype="bfloat16")
    config = SimpleNamespace(get_text_config=lambda decoder: text)
    assert plan_memory(subject(), config, "none", None, 1 << 40).context == 4096
    assert plan_memory(subject(), config, "none", 50_000, 1 << 40).context == 50_000
