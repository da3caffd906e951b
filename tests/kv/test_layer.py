"""One layer against a model of it that keeps every token by itself, whatever is done to the cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tqcli.errors import InputError
from tqcli.kv.layer import CompressedLayer
from tqcli.kv.settings import CacheSettings, Widths
from tqcli.kv.sliding import CompressedSlidingLayer, packed_limit
from tqcli.kv.vectors import Codec, dequantise, quantise

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
cache_settings = st.builds(
    CacheSettings,
    widths=st.builds(Widths, st.integers(2, 8), st.integers(2, 8)),
    sink_tokens=st.integers(0, 6),
    residual_tokens=st.integers(0, 20),
    block_tokens=st.integers(1, 9),
    seed=st.integers(0, 3),
)
chunks = st.lists(st.integers(1, 17), min_size=1, max_size=12)
shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.sampled_from([16, 32, 48, 64]), st.sampled_from([16, 64, 80])
)


class PlainModel:
    """Every token as itself and as it comes back, each head and sequence alone, and how many are packed."""

    def __init__(self, layer):
        self.settings, self.widths = layer.settings, layer.widths
        self.exact = [None, None]
        self.read_back = [None, None]
        self.sinks = self.packed = 0

    def append(self, *states):
        for side, (new, bits) in enumerate(zip(states, (self.widths.keys, self.widths.values), strict=True)):
            back = torch.empty_like(new)
            codec = Codec(new.shape[-1], bits, self.settings.seed)
            for sequence in range(new.shape[0]):
                for head in range(new.shape[1]):
                    back[sequence, head] = dequantise(quantise(new[sequence, head], codec), codec, new.dtype)
            self.exact[side] = new if self.exact[side] is None else torch.cat([self.exact[side], new], 2)
            self.read_back[side] = back if self.read_back[side] is None else torch.cat([self.read_back[side], back], 2)

    def read(self, side):
        end = self.sinks + self.packed
        return torch.cat(
            [
                self.exact[side][:, :, : self.sinks],
                self.read_back[side][:, :, self.sinks : end],
                self.exact[side][:, :, end:],
            ],
            2,
        )

    def settle(self):
        tokens = self.exact[0].shape[2]
        if not self.packed:
            self.sinks = min(self.settings.sink_tokens, tokens)
        newest = tokens - self.sinks - self.packed
        while newest >= self.settings.residual_tokens + self.settings.block_tokens:
            newest -= self.settings.block_tokens
            self.packed += self.settings.block_tokens

    def crop(self, count):
        left = self.exact[0].shape[2] - count
        self.change(lambda tensor: tensor[:, :, :left])
        self.sinks = min(self.sinks, left)
        self.packed = min(self.packed, left - self.sinks)

    def change(self, function):
        self.exact = [function(tensor) for tensor in self.exact]
        self.read_back = [function(tensor) for tensor in self.read_back]


def draw_states(shape, tokens, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, heads, *sizes = shape
    return [torch.randn(batch, heads, tokens, size, generator=generator).to(dtype) for size in sizes]


@settings(deadline=None, max_examples=80)
@given(cache_settings, chunks, shapes, st.sampled_from(DTYPES))
def test_what_is_read_is_what_was_written_token_by_token(asked, lengths, shape, dtype):
    layer = CompressedLayer(asked, asked.widths)
    model = PlainModel(layer)
    for number, length in enumerate(lengths):
        states = draw_states(shape, length, dtype, number)
        model.append(*states)
        found = layer.update(*states)
        # What comes now is exact; what was there is as it was stored.
        for side in range(2):
            assert found[side].dtype == dtype
            assert torch.equal(found[side], model.read(side))
        model.settle()
        assert layer.get_seq_length() == sum(lengths[: number + 1])
        assert layer.packed_tokens == model.packed


@settings(deadline=None, max_examples=60)
@given(cache_settings, chunks, chunks, shapes)
def test_what_is_stored_does_not_depend_on_how_the_tokens_came(asked, lengths, others, shape):
    total = min(sum(lengths), sum(others))
    states = draw_states(shape, total, torch.float32, 0)
    layers = []
    for cut in (lengths, others, [total], [1] * total):
        layer = CompressedLayer(asked, asked.widths)
        start = 0
        for length in cut:
            end = min(start + length, total)
            if end > start:
                layer.update(*(one[:, :, start:end] for one in states))
            start = end
        layers.append(layer)
    first = tensors_of(layers[0])
    for layer in layers[1:]:
        found = tensors_of(layer)
        assert len(found) == len(first)
        assert all(torch.equal(one, other) for one, other in zip(found, first, strict=True))


def tensors_of(layer):
    return [layer.keys, layer.values, *(layer.sinks or ()), *(one for side in layer.packed or () for one in side)]


class Step:
    """Things that are done to a cache between forward passes, to the layer and to its model."""

    @staticmethod
    def crop(layer, model, draw):
        count = draw(st.integers(0, layer.get_seq_length() - 1))
        layer.crop(-count)
        model.crop(count)
        model.settle()

    @staticmethod
    def crop_to(layer, model, draw):
        left = draw(st.integers(1, layer.get_seq_length() + 3))
        count = max(layer.get_seq_length() - left, 0)
        layer.crop(left)
        model.crop(count)
        model.settle()

    @staticmethod
    def reorder(layer, model, draw):
        batch = layer.keys.shape[0]
        order = torch.tensor(draw(st.lists(st.integers(0, batch - 1), min_size=batch, max_size=batch)))
        layer.reorder_cache(order)
        model.change(lambda tensor: tensor[order])

    @staticmethod
    def repeat(layer, model, draw):
        if layer.keys.shape[0] < 4:
            layer.batch_repeat_interleave(2)
            model.change(lambda tensor: tensor.repeat_interleave(2, dim=0))

    @staticmethod
    def select(layer, model, draw):
        batch = layer.keys.shape[0]
        kept = torch.tensor(draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=batch, unique=True)))
        layer.batch_select_indices(kept)
        model.change(lambda tensor: tensor[kept])

    @staticmethod
    def offload(layer, model, draw):
        layer.offload()
        layer.prefetch()


STEPS = [Step.crop, Step.crop_to, Step.reorder, Step.repeat, Step.select, Step.offload]


@settings(deadline=None, max_examples=100)
@given(cache_settings, shapes, st.lists(st.sampled_from(STEPS), min_size=1, max_size=6), st.data())
def test_any_order_of_what_generate_does(asked, shape, steps, data):
    layer = CompressedLayer(asked, asked.widths)
    model = PlainModel(layer)
    batch = shape[0]
    for number, step in enumerate([None, *steps]):
        if step:
            step(layer, model, data.draw)
            batch = layer.keys.shape[0]
        states = draw_states((batch, *shape[1:]), data.draw(st.integers(1, 20)), torch.float32, number)
        model.append(*states)
        found = layer.update(*states)
        for side in range(2):
            assert torch.equal(found[side], model.read(side))
        model.settle()


@settings(deadline=None, max_examples=60)
@given(cache_settings, st.integers(2, 40), chunks, shapes)
def test_a_sliding_layer_hands_out_the_window(asked, window, lengths, shape):
    if packed_limit(asked, window) <= 0:
        return
    layer = CompressedSlidingLayer(asked, asked.widths, window)
    plain = DynamicSlidingWindowLayer(sliding_window=window)
    oracle_settings = CacheSettings(asked.widths, 0, asked.residual_tokens, asked.block_tokens, seed=asked.seed)
    model = PlainModel(CompressedLayer(oracle_settings, asked.widths))
    for number, length in enumerate(lengths):
        states = draw_states(shape, length, torch.float32, number)
        assert layer.get_mask_sizes(length) == plain.get_mask_sizes(length)
        wanted = plain.update(*states)
        model.append(*states)
        found = layer.update(*states)
        for side in range(2):
            count = wanted[side].shape[2]
            assert torch.equal(found[side], model.read(side)[:, :, -count:])
        model.settle()
        assert layer.get_seq_length() == plain.get_seq_length()
        assert layer.packed_tokens <= packed_limit(asked, window)
        assert layer.keys.shape[2] < asked.residual_tokens + asked.block_tokens


@pytest.mark.parametrize("window", [None, 24])
@settings(deadline=None, max_examples=40)
@given(cache_settings, chunks, st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_a_rollback_leaves_no_trace(window, asked, lengths, drafts):
    """Tokens that are taken back at once, as guesses are in assisted generation, might never have been there."""
    if window and packed_limit(asked, window) <= 0:
        return

    def make():
        return CompressedSlidingLayer(asked, asked.widths, window) if window else CompressedLayer(asked, asked.widths)

    guessing, steady = make(), make()
    for number, length in enumerate(lengths):
        states = draw_states((2, 2, 32, 32), length, torch.float32, number)
        guessing.update(*states)
        steady.update(*states)
    guessing.activate_past_recording()
    for number, (length, wrong) in enumerate(drafts):
        states = draw_states((2, 2, 32, 32), length + wrong, torch.float32, 100 + number)
        guessing.update(*states)
        guessing.crop(-wrong)
        steady.update(*(one[:, :, :length] for one in states))
        assert all(torch.equal(one, other) for one, other in zip(tensors_of(guessing), tensors_of(steady), strict=True))


def test_a_window_that_has_moved_on_cannot_be_put_back():
    asked = CacheSettings(Widths(4, 4), residual_tokens=4, block_tokens=2)
    layer = CompressedSlidingLayer(asked, asked.widths, 16)
    layer.update(*draw_states((1, 1, 32, 32), 40, torch.float32, 0))
    before = [one.clone() for one in tensors_of(layer)]
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        layer.crop(-6)
    assert all(torch.equal(one, other) for one, other in zip(tensors_of(layer), before, strict=True))
    assert layer.get_seq_length() == 40


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_in_the_residual_window_is_the_plain_layer_to_the_bit(dtype):
    asked = CacheSettings(Widths(2, 2), residual_tokens=100)
    layer, plain = CompressedLayer(asked, asked.widths), DynamicLayer()
    for number, length in enumerate((30, 1, 1, 12)):
        states = draw_states((2, 3, 64, 64), length, dtype, number)
        for found, wanted in zip(layer.update(*states), plain.update(*states), strict=True):
            assert torch.equal(found, wanted)
        assert layer.get_mask_sizes(5) == plain.get_mask_sizes(5)


def test_a_token_is_quantised_once():
    """What is stored of a token stays the same bytes, whatever comes after it."""
    asked = CacheSettings(Widths(4, 3), sink_tokens=2, residual_tokens=8, block_tokens=4)
    layer = CompressedLayer(asked, asked.widths)
    layer.update(*draw_states((2, 2, 64, 64), 50, torch.bfloat16, 0))
    before = [one.clone() for side in layer.packed for one in side]
    for number in range(30):
        layer.update(*draw_states((2, 2, 64, 64), 1, torch.bfloat16, number))
    after = [one[:, :, : before[0].shape[2]] for side in layer.packed for one in side]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_memory_is_that_of_what_is_held():
    """No view keeps the memory of a prompt, nor of a projection that keys and values were cut from."""
    asked = CacheSettings(Widths(4, 3), sink_tokens=2, residual_tokens=8, block_tokens=4)
    fused = torch.randn(1, 2, 500, 3 * 64)
    for layer in (CompressedLayer(asked, asked.widths), CompressedSlidingLayer(asked, asked.widths, 64)):
        for end in (300, 301, 350, 500):
            begin = layer.get_seq_length()
            layer.update(fused[:, :, begin:end, 64:128], fused[:, :, begin:end, 128:])
            assert all(one.untyped_storage().nbytes() == one.nbytes for one in tensors_of(layer))
        layer.activate_past_recording()
        layer.update(fused[:, :, :5, 64:128], fused[:, :, :5, 128:])
        layer.crop(-3)
        assert all(one.untyped_storage().nbytes() == one.nbytes for one in tensors_of(layer))


def test_reset_forgets_everything():
    asked = CacheSettings(Widths(4, 3), residual_tokens=8)
    used, fresh = CompressedLayer(asked, asked.widths), CompressedLayer(asked, asked.widths)
    used.update(*draw_states((2, 2, 64, 64), 90, torch.float32, 0))
    used.reset()
    assert used.get_seq_length() == 0
    assert used.packed_tokens == 0
    states = draw_states((1, 3, 32, 32), 70, torch.bfloat16, 1)
    for found, wanted in zip(used.update(*states), fresh.update(*states), strict=True):
        assert torch.equal(found, wanted)


def test_a_head_size_that_cannot_be_is_refused():
    asked = CacheSettings(Widths(4, 3))
    with pytest.raises(InputError, match="heads of 72 numbers"):
        CompressedLayer(asked, asked.widths).update(*draw_states((1, 1, 72, 72), 3, torch.float32, 0))


def test_an_empty_layer_takes_what_is_done_to_a_cache():
    layer = CompressedLayer(CacheSettings(Widths(4, 3)), Widths(4, 3))
    layer.crop(-3)
    layer.reorder_cache(torch.tensor([0]))
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0]))
    layer.offload()
    layer.prefetch()
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.get_mask_sizes(7) == (7, 0)
