"""Whole models with a compressed cache: by its side, one that rounds the same tokens in plain memory."""

import copy

import pytest
import torch
from support.kv_caches import cache_name, logits, plain_cache, rounded_cache

from tqcli.errors import InputError
from tqcli.kv.cache import TurboQuantCache
from tqcli.kv.layer import CompressedLayer
from tqcli.kv.sliding import CompressedSlidingLayer

SMALL = {"kv": "k4v3", "sink_tokens": 2, "residual_tokens": 8, "block_tokens": 4, "sliding": True}
CHUNKS = {"at once": [60], "one by one": [20] + [1] * 40, "in pieces": [7, 13, 1, 30, 2, 7]}


def generate(model, ids, cache=None, **options):
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    if cache is not None:
        options["past_key_values" if cache_name(model) != "cache" else "cache"] = cache
    with torch.no_grad():
        return model.generate(input_ids=ids, **options)


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_a_model_sees_the_rounded_tokens_and_no_others(model, ids, chunks):
    found = logits(model, ids, TurboQuantCache(model.config, **SMALL), chunks)
    assert torch.equal(found, logits(model, ids, rounded_cache(model.config, **SMALL), chunks))
    plain = logits(model, ids, plain_cache(model.config), chunks)
    assert torch.equal(found, plain) == (chunks == [60])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_all_in_the_residual_window_is_the_plain_cache_to_the_bit(model, ids, dtype):
    model = model.to(dtype)
    try:
        plain = logits(model, ids, plain_cache(model.config), CHUNKS["one by one"])
        for options in ({"residual_tokens": None}, {"residual_tokens": float("inf"), "kv": "k2v2"}, {"kv": "none"}):
            found = logits(model, ids, TurboQuantCache(model.config, sliding=True, **options), CHUNKS["one by one"])
            assert torch.equal(found, plain)
    finally:
        model.to(torch.float32)


def test_more_bits_are_nearer(llama, ids):
    plain = logits(llama, ids, plain_cache(llama.config), CHUNKS["one by one"])
    errors = []
    for kv in ("k2v2", "k4v4", "k6v6", "k8v8"):
        found = logits(llama, ids, TurboQuantCache(llama.config, **SMALL | {"kv": kv}), CHUNKS["one by one"])
        errors.append((found - plain).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 20


def test_padded_rows_are_those_that_stand_alone(model, ids):
    """Padding on the left changes positions in memory, not what a row's own tokens come to but for the sinks."""
    asked = SMALL | {"sink_tokens": 0, "kv": "k8v8"}
    short = ids[:1, :52]
    padded = torch.cat([torch.cat([torch.zeros(1, 8, dtype=torch.long), short], 1), ids[1:]])
    mask = torch.ones_like(padded)
    mask[0, :8] = 0
    together = generate(model, padded, TurboQuantCache(model.config, **asked), attention_mask=mask, max_new_tokens=12)
    # Blocks begin where the row does, 8 tokens later: two whole blocks, so that the same tokens are packed.
    alone = generate(model, short, TurboQuantCache(model.config, **asked), max_new_tokens=12)
    assert torch.equal(together[0, 60:], alone[0, 52:])
    other = generate(model, ids[1:], TurboQuantCache(model.config, **asked), max_new_tokens=12)
    assert torch.equal(together[1], other[0])


def test_beams_are_those_of_the_rounded_cache(model, ids):
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 20}
    found = generate(model, ids, TurboQuantCache(model.config, **SMALL), **options)
    assert torch.equal(found, generate(model, ids, rounded_cache(model.config, **SMALL), **options))


def test_chunked_prefill(model, ids):
    options = {"prefill_chunk_size": 16}
    cache = TurboQuantCache(model.config, **SMALL)
    found = generate(model, ids, cache, **options)
    assert torch.equal(found, generate(model, ids, rounded_cache(model.config, **SMALL), **options))
    assert cache.get_seq_length() == 89


def test_a_conversation_goes_on_in_the_same_cache(model, ids):
    answers = []
    for cache in (TurboQuantCache(model.config, **SMALL), rounded_cache(model.config, **SMALL)):
        first = generate(model, ids, cache, max_new_tokens=10)
        longer = torch.cat([first, ids[:, 10:25]], dim=1)
        answers.append(generate(model, longer, cache, max_new_tokens=10))
        assert cache.get_seq_length() == 94
    assert torch.equal(*answers)


def test_a_copy_goes_its_own_way(model, ids):
    """As for a long prompt that several questions follow."""
    cache = TurboQuantCache(model.config, **SMALL)
    logits(model, ids[:, :50], cache, [50])
    answers = [generate(model, ids, copy.deepcopy(cache), max_new_tokens=10) for _ in range(2)]
    assert cache.get_seq_length() == 50
    answers.append(generate(model, ids, cache, max_new_tokens=10))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_reset_makes_a_cache_as_new(model, ids):
    cache = TurboQuantCache(model.config, **SMALL)
    first = generate(model, ids, cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(generate(model, ids, cache), first)


def test_a_cropped_cache_takes_other_tokens(llama, ids):
    cache, rounded = TurboQuantCache(llama.config, **SMALL), rounded_cache(llama.config, **SMALL)
    logits(llama, ids[:, :50], cache, [50])
    cache.crop(-20)
    logits(llama, ids[:, :50], rounded, [50])
    for layer in rounded.layers:
        layer.keys, layer.values = layer.keys[..., :30, :], layer.values[..., :30, :]
    found = logits(llama, ids[:, 30:32], cache, [2], position_ids=torch.tensor([[30, 31]]))
    wanted = logits(llama, ids[:, 30:32], rounded, [2], position_ids=torch.tensor([[30, 31]]))
    assert torch.equal(found, wanted)


def test_guessing_ahead_writes_text_and_keeps_the_count(model, ids):
    cache = TurboQuantCache(model.config, **SMALL | {"kv": "k8v8"})
    if not hasattr(cache, "activate_past_recording"):
        pytest.skip("this transformers cannot take back tokens of a sliding window")
    found = generate(model, ids[:1], cache, prompt_lookup_num_tokens=3)
    assert found.shape == (1, 90)
    assert cache.get_seq_length() in (89, 90)


def test_which_layers_are_compressed(gemma4, gemma4_shared, mistral):
    def kinds(model, **options):
        layers = TurboQuantCache(model.config, **options).layers
        return "".join({CompressedLayer: "C", CompressedSlidingLayer: "S"}.get(type(layer), "-") for layer in layers)

    assert kinds(gemma4) == "-C-C-C"
    assert kinds(gemma4, sliding=True, residual_tokens=8) == "SCSCSC"
    # The residual window would hold the sliding one whole.
    assert kinds(gemma4, sliding=True, residual_tokens=23) == "-C-C-C"
    assert kinds(gemma4, boundary_layers=2) == "---C--"
    assert kinds(gemma4_shared)[:4] == "-C-C"
    assert "C" not in kinds(gemma4_shared)[4:]
    assert kinds(mistral, sliding=True, residual_tokens=8) == "SS"


def test_layers_at_the_boundary_have_their_own_widths(gemma4):
    layers = TurboQuantCache(gemma4.config, "k4v3", boundary_layers=2, boundary_kv="k8v6").layers
    found = [str(layer.widths) if isinstance(layer, CompressedLayer) else None for layer in layers]
    assert found == [None, "k8v6", None, "k4v3", None, "k8v6"]


def test_a_cache_that_would_compress_nothing_is_refused(mistral, llama):
    with pytest.raises(InputError, match="nothing of this model's cache"):
        TurboQuantCache(mistral.config)
    with pytest.raises(InputError, match="nothing of this model's cache"):
        TurboQuantCache(llama.config, boundary_layers=1)
    TurboQuantCache(mistral.config, "none")


def test_models_that_cannot_have_one_are_refused():
    from transformers import LlamaConfig, T5Config

    with pytest.raises(InputError, match="heads of 72 numbers"):
        TurboQuantCache(LlamaConfig(hidden_size=144, num_attention_heads=2, num_hidden_layers=1))
    with pytest.raises(InputError, match="encoder and decoder"):
        TurboQuantCache(T5Config())


def test_it_is_among_the_public_names(llama):
    import tqcli

    assert tqcli.TurboQuantCache is TurboQuantCache
    assert "k4v3" in repr(tqcli.TurboQuantCache(llama.config)) or "keys=4" in repr(tqcli.TurboQuantCache(llama.config))
