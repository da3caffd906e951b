"""One full-attention layer's compressed keys and values, as a layer of transformers' `Cache`.

    first tokens (sinks)   |   packed tokens   |   newest tokens (`keys`, `values`)
    full precision             2 to 8 bits         full precision

A token is quantised once, when it leaves the window of the newest; nothing is quantised again. The tokens of a forward
pass attend to each other's exact keys and values, however many they are. Tokens leave in blocks, counted from the
sequence's start: what is stored depends on the tokens seen and not on how they came (unless some were cropped).
Left out: sliding windows (`sliding`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from tqcli.kv import vectors
from tqcli.kv.settings import CacheSettings, Widths
from tqcli.kv.vectors import Codec, Packed

# Keys and values, either of shape (batch, heads, tokens, head size).
Pair = tuple[Tensor, Tensor]


class CompressedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer. The inherited `keys` and `values` are the newest tokens alone.

    Compressed already, a rollback may cut anywhere. With `activate_past_recording`, tokens wait in full precision for
    the next `crop`, so that a rollback leaves no trace.
    """

    is_croppable = True
    keys: Any
    values: Any
    is_initialized: bool
    cumulative_length: int

    def __init__(self, settings: CacheSettings, widths: Widths) -> None:
        super().__init__()
        self.settings = settings
        self.widths = widths
        self.record_past = False
        self._forget()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn dtype, device and head sizes. Raises InputError for a head size that cannot be compressed."""
        super().lazy_initialization(key_states, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self._codecs = (
            self._codec(key_states.shape[-1], self.widths.keys),
            self._codec(value_states.shape[-1], self.widths.values),
        )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Pair:  # noqa: ARG002
        """Append tokens; all keys and values to attend to, the new ones exact, in the order of the sequence."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self._visible()
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        self.cumulative_length += key_states.shape[-2]
        seen = self._read(before + key_states.shape[-2])
        if not self.record_past:
            self._settle()
        return seen

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.cumulative_length

    def activate_past_recording(self) -> None:
        """Quantise nothing more until `crop`, which then does; `crop` must follow each forward pass."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Remove that many of the newest tokens, given as a negative number; a positive one is the length to keep."""
        if not self.is_initialized:
            return
        removed = max(self.cumulative_length - tokens_to_remove, 0) if tokens_to_remove > 0 else -tokens_to_remove
        self._remove(min(removed, self.cumulative_length))
        self._settle()

    def reset(self) -> None:
        """Forget every token."""
        self._forget()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the sequences `beam_idx` in place of those here."""
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices`, numbers or a mask."""
        self._map(lambda tensor: tensor[indices, ...])

    def offload(self) -> None:
        """Move everything to main memory."""
        self._map(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move everything back."""
        self._map(lambda tensor: tensor.to(self.device, non_blocking=True))

    @property
    def packed_tokens(self) -> int:
        """Tokens that are stored compressed."""
        return int(self.packed[0].scales.shape[-2]) if self.packed else 0

    def _codec(self, size: int, bits: int) -> Codec:
        codec = Codec(size, bits, self.settings.seed, self.settings.scale)
        _ = codec.block
        return codec

    def _forget(self) -> None:
        self.keys = self.values = None
        self.sinks: Pair | None = None
        self.packed: tuple[Packed, Packed] | None = None
        self.cumulative_length = 0
        self.is_initialized = False

    def _visible(self) -> int:
        """How many of the tokens seen so far the next ones attend to."""
        return self.cumulative_length

    def _read(self, count: int) -> Pair:
        """Keys and values of the last `count` tokens."""
        skipped = max(self._stored() - count, 0)
        found = []
        for side, newest in enumerate((self.keys, self.values)):
            parts = [self.sinks[side]] if self.sinks else []
            if self.packed:
                held = Packed(*(tensor[..., skipped:, :] for tensor in self.packed[side]))
                parts.append(vectors.dequantise(held, self._codecs[side], self.dtype))
            tokens = torch.cat([*parts, newest], dim=-2) if parts else newest
            found.append(tokens[..., -count:, :] if tokens.shape[-2] > count else tokens)
        return found[0], found[1]

    def _stored(self) -> int:
        sinks = self.sinks[0].shape[-2] if self.sinks else 0
        return int(sinks) + self.packed_tokens + int(self.keys.shape[-2])

    def _settle(self) -> None:
        """Let the tokens beyond the residual window leave it: to the sinks first, then packed, whole blocks only."""
        self._fill_sinks()
        settings = self.settings
        count = settings.packed_tokens(self.keys.shape[-2], 0)
        if count:
            keys, values = self._take(count)
            self._pack(keys, values)

    def _fill_sinks(self) -> None:
        held = self.sinks[0].shape[-2] if self.sinks else 0
        count = min(self.settings.sink_tokens - held, self.keys.shape[-2])
        if count > 0:
            keys, values = self._take(count)
            self.sinks = (
                (torch.cat([self.sinks[0], keys], dim=-2), torch.cat([self.sinks[1], values], dim=-2))
                if self.sinks
                else (keys.clone(), values.clone())
            )

    def _take(self, count: int) -> Pair:
        """The oldest `count` of the newest tokens, which they then no longer are."""
        taken = self.keys[..., :count, :], self.values[..., :count, :]
        # Copied: a view would keep the memory of what has left.
        self.keys, self.values = self.keys[..., count:, :].clone(), self.values[..., count:, :].clone()
        return taken

    def _pack(self, keys: Tensor, values: Tensor) -> None:
        new = tuple(vectors.quantise(one, codec) for one, codec in zip((keys, values), self._codecs, strict=True))
        if self.packed:
            new = tuple(_append(old, late) for old, late in zip(self.packed, new, strict=True))
        self.packed = new[0], new[1]

    def _remove(self, count: int) -> None:
        self.cumulative_length -= count
        newest = min(count, self.keys.shape[-2])
        packed = min(count - newest, self.packed_tokens)
        sinks = count - newest - packed
        if newest:
            self.keys, self.values = _shortened(self.keys, newest), _shortened(self.values, newest)
        if packed and self.packed:
            keys, values = (Packed(*(_shortened(one, packed) for one in side)) for side in self.packed)
            self.packed = keys, values
        if sinks and self.sinks:
            self.sinks = _shortened(self.sinks[0], sinks), _shortened(self.sinks[1], sinks)

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        if not self.cumulative_length:
            return
        self.keys, self.values = change(self.keys), change(self.values)
        if self.sinks:
            self.sinks = change(self.sinks[0]), change(self.sinks[1])
        if self.packed:
            keys, values = (Packed(*(change(one) for one in side)) for side in self.packed)
            self.packed = keys, values


def _append(old: Packed, late: Packed) -> Packed:
    return Packed(*(torch.cat([one, other], dim=-2) for one, other in zip(old, late, strict=True)))


def _shortened(tensor: Tensor, count: int) -> Tensor:
    """Without its last `count` tokens, in memory of its own."""
    return tensor[..., : tensor.shape[-2] - count, :].clone()
