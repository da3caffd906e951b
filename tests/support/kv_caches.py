"""A cache that computes what a compressed one must, with every token in full precision memory."""

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tqcli.kv.cache import TurboQuantCache
from tqcli.kv.settings import read_settings
from tqcli.kv.sliding import packed_limit
from tqcli.kv.vectors import Codec, dequantise, quantise


class _RoundedTokens:
    """Replaces the keys and values of tokens that leave the residual window by what they come back as."""

    def setup(self, settings, sinks):
        self.asked, self.sinks, self.rounded = settings, sinks, 0
        return self

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        seen = self.get_seq_length()
        sinks = min(self.sinks, seen)
        end = max(sinks + self.asked.packed_tokens(seen, sinks), self.rounded)
        begin = max(self.rounded, sinks)
        first = seen - self.keys.shape[-2]
        where = slice(max(begin - first, 0), max(end - first, 0))
        self.keys = self._round(self.keys, where, self.asked.widths.keys)
        self.values = self._round(self.values, where, self.asked.widths.values)
        self.rounded = max(end, begin)
        return keys, values

    def _round(self, tensor, where, bits):
        codec = Codec(tensor.shape[-1], bits, self.asked.seed, self.asked.scale)
        changed = tensor.clone()
        if where.stop > where.start:
            changed[..., where, :] = dequantise(quantise(tensor[..., where, :], codec), codec, tensor.dtype)
        return changed


class _Full(_RoundedTokens, DynamicLayer):
    pass


class _Sliding(_RoundedTokens, DynamicSlidingWindowLayer):
    pass


def plain_cache(config):
    """What transformers uses by itself; up to version 5.12 it forgets the sliding windows of some models, not here."""
    cache = DynamicCache(config=config)
    if not cache.layers:
        cache.layers, cache.layer_class_to_replicate = TurboQuantCache(config, "none").layers, None
    return cache


def rounded_cache(config, **options):
    """A plain cache that reads back what `TurboQuantCache(config, **options)` does; no rollback."""
    settings = read_settings(**options)
    cache = plain_cache(config)
    for number, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            continue
        if not layer.is_sliding:
            cache.layers[number] = _Full().setup(settings, settings.sink_tokens)
        elif settings.sliding and packed_limit(settings, layer.sliding_window) > 0:
            cache.layers[number] = _Sliding(sliding_window=layer.sliding_window).setup(settings, 0)
    return cache


def logits(model, ids, cache, chunks, **inputs):
    """The logits of each of `ids`, run in pieces of those lengths."""
    found, start = [], 0
    name = cache_name(model)
    mask = inputs.pop("attention_mask", None)
    for length in chunks:
        end = start + length
        masks = {} if mask is None else {"attention_mask": mask[:, :end]}
        with torch.no_grad():
            found.append(model(input_ids=ids[:, start:end], use_cache=True, **{name: cache}, **masks, **inputs).logits)
        start = end
    assert start == ids.shape[1]
    return torch.cat(found, dim=1)


def cache_name(model):
    """What this version of transformers calls the cache among a model's arguments."""
    import inspect

    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
