"""What is read back of a paged cache is the round trip of what was written: for any heads, chunks, batch and blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tqcli.errors import InputError
from tqcli.kv.settings import CacheSettings, Widths
from tqcli.kv.vectors import Codec, dequantise, quantise
from tqcli.runtime.vllm.kv.cells import Cells

SETTINGS = CacheSettings(Widths(4, 3))
HEAD_SIZES = (32, 64, 80, 96, 128, 256, 512)


def cells_of(size: int, keys: int = 4, values: int = 3) -> Cells:
    return Cells.of(size, Widths(keys, values), SETTINGS)


def round_trip(vectors: torch.Tensor, bits: int) -> torch.Tensor:
    """A vector at a time, so that what is compared has no batch of its own."""
    codec = Codec(vectors.shape[-1], bits, 0)
    rows = [dequantise(quantise(row[None], codec), codec, vectors.dtype) for row in vectors.flatten(0, -2)]
    return torch.cat(rows).view_as(vectors)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_what_is_read_is_the_round_trip_of_what_was_written(data):
    size, heads = data.draw(st.sampled_from(HEAD_SIZES)), data.draw(st.integers(1, 5))
    keys_bits, values_bits = data.draw(st.integers(2, 8)), data.draw(st.integers(2, 8))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    block_tokens, count = data.draw(st.sampled_from([1, 4, 32])), data.draw(st.integers(1, 40))
    cells = cells_of(size, keys_bits, values_bits)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    # Bytes that were there before, and more of them in a page than cells take.
    blocks = -(-count // block_tokens) + 2
    memory = torch.randint(0, 256, (blocks, heads * block_tokens * cells.bytes + 10), dtype=torch.uint8)
    strides = (memory.stride(0), block_tokens * cells.bytes, cells.bytes, 1)
    cache = memory.as_strided((blocks, heads, block_tokens, cells.bytes), strides)
    order = torch.randperm(blocks, generator=generator)
    slots = torch.stack([order[i // block_tokens] * block_tokens + i % block_tokens for i in range(count)])
    keys = torch.randn(count, heads, size, generator=generator).to(dtype)
    values = torch.randn(count, heads, size, generator=generator).to(dtype)
    first = 0
    while first < count:
        last = first + data.draw(st.integers(1, count))
        cells.write(cache, slots[first:last], keys[first:last], values[first:last])
        first = last
    used = -(-count // block_tokens)
    lengths = torch.tensor([min(count - i * block_tokens, block_tokens) for i in range(used)])
    found = cells.read(cache, order[:used], lengths, dtype)
    for one, written, bits in zip(found, (keys, values), (keys_bits, values_bits), strict=True):
        assert one.dtype == dtype
        assert one.shape == (used * block_tokens, heads, size)
        assert one.is_contiguous()
        assert torch.equal(one[:count], round_trip(written, bits))
        assert not one[count:].any()


def test_nothing_but_the_cells_of_the_tokens_changes():
    """A peer mixed the heads up where there was more than one; another wrote beyond the cache's end."""
    cells = cells_of(64)
    cache = torch.randint(0, 256, (4, 3, 8, cells.bytes + 5), dtype=torch.uint8)
    before = cache.clone()
    cells.write(cache, torch.tensor([9, -1, 30]), torch.randn(3, 3, 64), torch.randn(3, 3, 64))
    changed = (cache != before).any(-1)
    assert changed.nonzero().tolist() == [[1, head, 1] for head in range(3)] + [[3, head, 6] for head in range(3)]
    assert torch.equal(cache[..., cells.bytes :], before[..., cells.bytes :])


@pytest.mark.parametrize("slot", [32, 1000, 2**40])
def test_a_slot_beyond_the_cache_raises(slot):
    cells = cells_of(64)
    cache = torch.zeros(4, 1, 8, cells.bytes, dtype=torch.uint8)
    with pytest.raises(IndexError):
        cells.write(cache, torch.tensor([3, slot]), torch.randn(2, 1, 64), torch.randn(2, 1, 64))
    for blocks in ([0, slot // 8], [-1, 0], [-1]):
        with pytest.raises(IndexError):
            cells.read(cache, torch.tensor(blocks), torch.full((len(blocks),), 8), torch.float32)


@pytest.mark.parametrize("blocks", [[], [2], [1, 2, 3], [3, 2, 1], [0, 2], [1, 1]])
def test_blocks_in_any_order(blocks):
    cells = cells_of(32)
    cache = torch.zeros(4, 2, 8, cells.bytes, dtype=torch.uint8)
    keys, values = torch.randn(32, 2, 32), torch.randn(32, 2, 32)
    cells.write(cache, torch.arange(32), keys, values)
    chosen = torch.tensor(blocks, dtype=torch.int64)
    found = cells.read(cache, chosen, torch.full((len(blocks),), 8), torch.float32)
    for one, written, bits in zip(found, (keys, values), (4, 3), strict=True):
        assert torch.equal(
            one, round_trip(written.view(4, 8, 2, 32)[chosen].flatten(0, 1), bits) if blocks else one[:0]
        )


def test_what_is_not_finite_stays_with_its_token_and_head():
    cells = cells_of(64)
    cache = torch.zeros(1, 2, 4, cells.bytes, dtype=torch.uint8)
    keys, values = torch.randn(2, 2, 64), torch.randn(2, 2, 64)
    keys[0, 1, 3] = float("nan")
    cells.write(cache, torch.tensor([0, 1]), keys, values)
    found, _ = cells.read(cache, torch.tensor([0]), torch.tensor([4]), torch.float32)
    assert not found[0, 1].isfinite().any()
    assert found[0, 0].isfinite().all()
    assert found[1:].isfinite().all()
    # The same memory with another sequence's tokens: what was there before is not seen.
    assert cells.read(cache, torch.tensor([0]), torch.tensor([0]), torch.float32)[0].eq(0).all()


@pytest.mark.parametrize(("size", "bytes_of_cell"), [(64, 60), (96, 96), (128, 116), (256, 228), (512, 456)])
def test_bytes_of_a_cell(size, bytes_of_cell):
    """4 and 3 bits a number and a scale a block of 32, 64, 128, 256; heads of 512 have room for two scales, use one."""
    assert cells_of(size).bytes == bytes_of_cell


@pytest.mark.parametrize("keys", range(2, 9))
@pytest.mark.parametrize("values", range(2, 9))
def test_pages_of_gemma_4_divide_each_other(keys, values):
    assert cells_of(512, keys, values).bytes == 2 * cells_of(256, keys, values).bytes


def test_heads_that_cannot_be_compressed_are_refused():
    with pytest.raises(InputError, match="heads of 72 numbers"):
        cells_of(72)
