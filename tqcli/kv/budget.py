"""Bytes of a compressed cache before there is one, from a model's configuration: exact, for any number of tokens.

Pure arithmetic, in step with `TurboQuantCache.nbytes`. Left out: what a forward pass takes besides, foremost the keys
and values of one layer in full precision while it attends.
"""

from dataclasses import dataclass
from typing import Any

from tqcli.errors import InputError
from tqcli.kv.settings import CacheSettings, Widths, read_settings
from tqcli.kv.shapes import LayerShape, layer_shapes
from tqcli.kv.sliding import packed_limit
from tqcli.kv.vectors import Codec

_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class LayerBudget:
    """Bytes of one layer, for one sequence. widths: None in full precision.

    packed_bytes, exact_bytes: of one token's keys and values, compressed and in full precision.
    """

    shape: LayerShape
    widths: Widths | None
    packed_bytes: int
    exact_bytes: int
    settings: CacheSettings

    @property
    def bytes_per_token(self) -> int:
        """What each further token of a long sequence adds."""
        if self.shape.kind == "sliding":
            return 0
        return self.exact_bytes if self.widths is None else self.packed_bytes

    @property
    def constant_bytes(self) -> int:
        """What a long sequence takes besides, at most: a sliding window, or the tokens in full precision."""
        if self.shape.kind != "sliding":
            return 0 if self.widths is None else self.settings.exact_tokens * (self.exact_bytes - self.packed_bytes)
        if self.widths is None:
            return self.shape.window * self.exact_bytes
        newest = (self.settings.residual_tokens or 0) + self.settings.block_tokens - 1
        return newest * self.exact_bytes + packed_limit(self.settings, self.shape.window) * self.packed_bytes

    def nbytes(self, tokens: int) -> int:
        """What `tokens` tokens take, the last of which came alone."""
        is_sliding = self.shape.kind == "sliding"
        if self.widths is None:
            return self.exact_bytes * (min(tokens, self.shape.window) if is_sliding else tokens)
        sinks = 0 if is_sliding else min(tokens, self.settings.sink_tokens)
        packed = self.settings.packed_tokens(tokens, sinks)
        kept = min(packed, packed_limit(self.settings, self.shape.window)) if is_sliding else packed
        return (tokens - packed) * self.exact_bytes + kept * self.packed_bytes


@dataclass(frozen=True)
class CacheBudget:
    """Bytes of a model's cache. layers: those that store keys and values."""

    layers: tuple[LayerBudget, ...]

    @property
    def bytes_per_token(self) -> int:
        """What each further token of a long sequence adds."""
        return sum(layer.bytes_per_token for layer in self.layers)

    @property
    def full_bytes_per_token(self) -> int:
        """The same without compression."""
        return sum(layer.exact_bytes for layer in self.layers if layer.shape.kind != "sliding")

    @property
    def constant_bytes(self) -> int:
        """What each sequence takes besides, at most."""
        return sum(layer.constant_bytes for layer in self.layers)

    def nbytes(self, tokens: int, sequences: int = 1) -> int:
        """What `sequences` sequences of `tokens` tokens take, the last of which came alone."""
        return sequences * sum(layer.nbytes(tokens) for layer in self.layers)


def cache_budget(config: Any, kv: str | CacheSettings = "k4v3", *, dtype: Any = None, **options: Any) -> CacheBudget:
    """The budget of a transformers configuration and of the settings that `TurboQuantCache` takes.

    dtype: of the model's keys and values, a torch dtype or its name; None for the configuration's own. Raises
    InputError for settings that make no sense and for layers whose memory is not known.
    """
    settings = read_settings(kv, **options)
    shapes = layer_shapes(config)
    size = _element_bytes(config, dtype)
    return CacheBudget(
        tuple(
            _layer_budget(shape, settings, settings.widths_of(number, len(shapes)), size)
            for number, shape in enumerate(shapes)
            if shape.kind != "none"
        )
    )


def bytes_per_token(config: Any, kv: str | CacheSettings = "k4v3", *, dtype: Any = None, **options: Any) -> int:
    """What each further token of a long sequence adds to the cache; `cache_budget` has the rest."""
    return cache_budget(config, kv, dtype=dtype, **options).bytes_per_token


def _layer_budget(shape: LayerShape, settings: CacheSettings, widths: Widths | None, size: int) -> LayerBudget:
    if shape.kind not in ("full", "sliding"):
        raise InputError(f"the memory of `{shape.kind}` layers is not known", fix="measure `TurboQuantCache.nbytes`")
    exact = shape.heads * (shape.key_size + shape.value_size) * size
    if shape.kind == "sliding" and not (settings.sliding and packed_limit(settings, shape.window) > 0):
        widths = None
    if widths is None:
        return LayerBudget(shape, None, exact, exact, settings)
    sides = ((shape.key_size, widths.keys), (shape.value_size, widths.values))
    packed = shape.heads * sum(Codec(numbers, bits, settings.seed).bytes for numbers, bits in sides)
    return LayerBudget(shape, widths, packed, exact, settings)


def _element_bytes(config: Any, dtype: Any) -> int:
    text = config.get_text_config(decoder=True)
    found = dtype or getattr(text, "dtype", None) or getattr(config, "dtype", None) or "float32"
    name = str(found).removeprefix("torch.")
    if name not in _ELEMENT_BYTES:
        raise InputError(f"keys and values of `{name}` are not known", fix=", ".join(_ELEMENT_BYTES))
    return _ELEMENT_BYTES[name]
