"""The cells of a paged cache: one token's key and value of one head, packed. Written, and read back, whole.

    cell    key codes | key scales | value codes | value scales | unused
    cache   uint8 (blocks, heads, tokens of a block, bytes of a cell), as vLLM hands it out

The codec is `tqcli.kv.vectors`: what a cell holds depends on that token and head alone, so that tokens may come in any
chunks, in any batch, and cells may be shared by sequences that begin alike. Left out: which blocks a sequence has
(`parts`), and vLLM itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tqcli.kv import vectors
from tqcli.kv.settings import CacheSettings, Widths
from tqcli.kv.vectors import Codec, Packed

# Every so many numbers of a head have room for a scale, used or not: layers of heads of 256 and of 512 numbers then
# have pages that divide each other. Without it vLLM would fill Gemma 4's pages up, and half of them would be air.
_NUMBERS_PER_SCALE = 256
_SCALE_BYTES = 2


@dataclass(frozen=True)
class Cells:
    """How cells of one head size are laid out. keys, values: their codecs."""

    keys: Codec
    values: Codec

    @classmethod
    def of(cls, head_size: int, widths: Widths, settings: CacheSettings) -> "Cells":
        """Raises InputError for a head size that cannot be compressed."""
        keys, values = (Codec(head_size, bits, settings.seed, settings.scale) for bits in (widths.keys, widths.values))
        _ = keys.block
        return cls(keys, values)

    @property
    def bytes(self) -> int:
        """Of a cell."""
        return _room(self.keys) + _room(self.values)

    def write(self, cache: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Pack tokens into the cache.

        cache: uint8 (blocks, heads, block tokens, at least `bytes`). slots: (tokens,), each a block times its tokens
        plus the token's place; negative ones are left out. keys, values: (tokens, heads, head size), any floats.
        Raises IndexError for a slot beyond the cache.
        """
        is_kept = slots >= 0
        if not bool(is_kept.all()):
            slots, keys, values = slots[is_kept], keys[is_kept], values[is_kept]
        block_tokens = cache.shape[2]
        packed = torch.cat(
            [_bytes(vectors.quantise(keys, self.keys)), _bytes(vectors.quantise(values, self.values))], dim=-1
        )
        blocks, places = slots.long() // block_tokens, slots.long() % block_tokens
        cache[blocks, :, places, : packed.shape[-1]] = packed  # (tokens, heads, bytes)

    def read(self, cache: Tensor, blocks: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the blocks, each (blocks * block tokens, heads, head size) of `dtype`.

        blocks: (n,), numbers of blocks. lengths: (n,), how many tokens of each hold something; beyond them there are
        zeros, whatever the memory held before. Raises IndexError for a block beyond the cache.
        """
        cells = _chosen(cache, blocks.long()).transpose(1, 2)  # (n, block tokens, heads, bytes)
        split = self.keys.bytes
        keys = _read(cells[..., :split], self.keys, dtype)
        values = _read(cells[..., split : split + self.values.bytes], self.values, dtype)
        for number in (lengths < cells.shape[1]).nonzero().flatten().tolist():
            keys[number, lengths[number] :] = 0
            values[number, lengths[number] :] = 0
        return keys.flatten(0, 1), values.flatten(0, 1)


def _room(codec: Codec) -> int:
    scales = max(codec.size // codec.block, -(-codec.size // _NUMBERS_PER_SCALE))
    return codec.code_bytes + _SCALE_BYTES * scales


def _bytes(packed: Packed) -> Tensor:
    return torch.cat([packed.codes, packed.scales.view(torch.uint8)], dim=-1)


def _chosen(cache: Tensor, blocks: Tensor) -> Tensor:
    """cache[blocks]; those that follow each other, as a lone sequence's do, without a copy."""
    if not len(blocks):
        return cache[:0]
    first, last = int(blocks.min()), int(blocks.max())
    if first < 0 or last >= len(cache):
        raise IndexError(f"blocks {first} to {last} of a cache that has {len(cache)}")
    is_run = torch.equal(blocks, torch.arange(first, first + len(blocks)))
    return cache[first : last + 1] if is_run else cache[blocks]


def _read(cells: Tensor, codec: Codec, dtype: torch.dtype) -> Tensor:
    """(n, block tokens, heads, bytes) as (n, block tokens, heads, head size); the bytes stay where they are."""
    scales = cells[..., codec.code_bytes :].view(torch.float16)
    return vectors.dequantise(Packed(cells[..., : codec.code_bytes], scales), codec, dtype)
