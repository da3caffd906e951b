"""`TurboQuantCache`: a key-value cache that transformers' models and `generate` take in place of their own.

    model.generate(**inputs, past_key_values=TurboQuantCache(model.config, kv="k4v3"))

transformers itself says which layer of a model stores what; of its layers, those of plain full attention are replaced,
and by choice those of sliding windows. Layers that share another's keys, and states of other kinds, stay as they are.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tqcli.errors import InputError
from tqcli.kv.blocks import block_size
from tqcli.kv.layer import CompressedLayer
from tqcli.kv.settings import CacheSettings, Widths, read_settings
from tqcli.kv.shapes import LayerShape, layer_shapes
from tqcli.kv.sliding import CompressedSlidingLayer, packed_limit


class TurboQuantCache(Cache):  # type: ignore[misc]
    """A cache of a model's configuration, `kv` its widths (`k4v3`, `none`, ...) and options as in `CacheSettings`.

    Raises InputError for settings that make no sense, and for a model of which nothing would be compressed.
    """

    def __init__(self, config: Any, kv: str | CacheSettings = "k4v3", **options: Any) -> None:
        self.settings = read_settings(kv, **options)
        super().__init__(layers=_layers(config, self.settings))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings})"

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache holds, those of the layers that are not compressed included.

        Memory that tensors share is counted once, and whole where only a part of it is in use.
        """
        memory = {}
        for layer in self.layers:
            for tensor in _tensors(vars(layer)):
                storage = tensor.untyped_storage()
                memory[storage.data_ptr()] = storage.nbytes()
        return sum(memory.values())


def _layers(config: Any, settings: CacheSettings) -> list[Any]:
    if getattr(config, "is_encoder_decoder", False):
        raise InputError("the key-value cache of an encoder and decoder cannot be compressed", fix="kv=none")
    shapes = layer_shapes(config)
    layers = DynamicCache(config=config).layers or [_plain(shape) for shape in shapes]
    replaced = [_replace(layer, number, shapes, settings) for number, layer in enumerate(layers)]
    wants_some = settings.widths is not None and settings.residual_tokens is not None
    if wants_some and not any(isinstance(layer, CompressedLayer) for layer in replaced):
        kinds = ", ".join(sorted({shape.kind for shape in shapes}))
        raise InputError(
            f"nothing of this model's cache would be compressed (its layers: {kinds})",
            why="full-attention layers are, sliding ones with `sliding=True`, boundary layers as `boundary_kv` says",
            fix="`sliding=True` or fewer `boundary_layers` where that helps, or kv=none",
        )
    return replaced


def _plain(shape: LayerShape) -> Any:
    """What transformers would make of a layer; its version 5.5 makes no list where no layers share their keys."""
    if shape.kind == "sliding":
        return DynamicSlidingWindowLayer(sliding_window=shape.window)
    if shape.kind == "full":
        return DynamicLayer()
    raise InputError(f"a cache of `{shape.kind}` layers is not known here", fix="a newer transformers, or kv=none")


def _replace(layer: Any, number: int, shapes: list[LayerShape], settings: CacheSettings) -> Any:
    widths = settings.widths_of(number, len(shapes))
    # Derived classes store more than keys and values.
    if widths is None or type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
        return layer
    compressed = _compressed(layer, settings, widths)
    shape = shapes[number]
    if compressed is not layer and shape.key_size:
        block_size(shape.key_size)
        block_size(shape.value_size)
    return compressed


def _compressed(layer: Any, settings: CacheSettings, widths: Widths) -> Any:
    if type(layer) is DynamicLayer:
        return CompressedLayer(settings, widths)
    if not settings.sliding or packed_limit(settings, layer.sliding_window) <= 0:
        return layer
    return CompressedSlidingLayer(settings, widths, layer.sliding_window)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors with at least one axis in nested containers."""
    if isinstance(value, Tensor):
        if value.ndim:
            yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
