"""The budget is what a cache takes, to the byte."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kv_caches import logits

from tqcli.errors import InputError
from tqcli.kv.budget import bytes_per_token, cache_budget
from tqcli.kv.cache import TurboQuantCache

options_of_a_cache = st.fixed_dictionaries(
    {
        "kv": st.sampled_from(["none", "k4v3", "k8v4", "k2v2", "k7v5", "k3v6", "k8v8"]),
        "sink_tokens": st.integers(0, 6),
        "residual_tokens": st.sampled_from([None, 0, 3, 8, 20, 23]),
        "block_tokens": st.sampled_from([1, 4, 32]),
        "boundary_layers": st.integers(0, 1),
        "boundary_kv": st.sampled_from(["none", "k8v8"]),
        "sliding": st.booleans(),
    }
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma4", "gemma4_shared", "llama", "mistral"])
@settings(deadline=None, max_examples=25)
@given(asked=options_of_a_cache, tokens=st.integers(1, 70), batch=st.integers(1, 3))
def test_a_cache_takes_what_its_budget_says(request, name, dtype, asked, tokens, batch):
    model = request.getfixturevalue(name)
    try:
        cache = TurboQuantCache(model.config, **asked)
    except InputError:
        # Nothing would be compressed.
        return
    ids = torch.ones(batch, tokens, dtype=torch.long)
    try:
        logits(model.to(dtype), ids, cache, [tokens - 1, 1] if tokens > 1 else [1])
    finally:
        model.to(torch.float32)
    assert cache.nbytes == cache_budget(model.config, dtype=dtype, **asked).nbytes(tokens, batch)


@settings(deadline=None)
@given(asked=options_of_a_cache, tokens=st.integers(100, 5000))
def test_the_parts_of_a_budget_bound_it(gemma4, asked, tokens):
    budget = cache_budget(gemma4.config, **asked)
    found = budget.nbytes(tokens)
    assert tokens * budget.bytes_per_token <= found <= budget.constant_bytes + tokens * budget.bytes_per_token
    # A whole number of blocks more is that many tokens more, to the byte.
    assert budget.nbytes(tokens + 320) == found + 320 * budget.bytes_per_token


def test_the_bytes_of_gemma_4_26b():
    """Five full layers of 2 heads of 512 numbers, 25 sliding ones of 8 heads of 256 with a window of 1024."""
    from transformers import Gemma4TextConfig

    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 5
    config = Gemma4TextConfig(
        num_hidden_layers=30, layer_types=kinds, num_attention_heads=16, num_key_value_heads=8, head_dim=256,
        global_head_dim=512, num_global_key_value_heads=2, attention_k_eq_v=True, sliding_window=1024,
        num_kv_shared_layers=0, dtype="bfloat16",
    )  # fmt: skip
    full = 5 * 2 * 2 * 512 * 2
    assert bytes_per_token(config, "none") == full == 20_480
    assert bytes_per_token(config, "k4v3") == 5 * 2 * (512 * 7 // 8 + 4) == 4_520
    assert bytes_per_token(config, "k8v8") == 5 * 2 * (512 * 2 + 4) == 10_280
    budget = cache_budget(config, "k4v3")
    assert budget.full_bytes_per_token == full
    sliding = 25 * 1024 * 8 * 256 * 2 * 2
    assert cache_budget(config, "none").constant_bytes == sliding == 209_715_200
    assert budget.constant_bytes == sliding + (4 + 128 + 31) * (20_480 - 4_520)
    assert budget.nbytes(32_768) == pytest.approx(sliding + 32_768 * 4_520, rel=0.01)
    smaller = cache_budget(config, "k4v3", sliding=True)
    assert smaller.bytes_per_token == 4_520
    assert smaller.constant_bytes < sliding / 2.5


def test_layers_whose_memory_is_not_known_are_said():
    from transformers import DeepseekV3Config

    with pytest.raises(InputError, match="latent_attention"):
        cache_budget(DeepseekV3Config())


def test_a_dtype_that_is_not_known_is_said(llama):
    with pytest.raises(InputError, match="int8"):
        bytes_per_token(llama.config, dtype="int8")
    assert bytes_per_token(llama.config, "none", dtype="float32") == 2 * bytes_per_token(
        llama.config, "none", dtype="torch.bfloat16"
    )
