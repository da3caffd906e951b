"""What is read back of a head vector, against an implementation that takes no short cuts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tq_kernels import kv_reference

from tqcli.codec import hadamard
from tqcli.errors import InputError
from tqcli.kv import levels
from tqcli.kv.blocks import block_size
from tqcli.kv.vectors import Codec, Packed, dequantise, quantise

SIZES = (16, 32, 48, 64, 80, 96, 128, 192, 256, 512)
sizes = st.sampled_from(SIZES)
widths = st.integers(2, 8)


def sylvester(size: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def plainly(vector: np.ndarray, bits: int, seed: int, scale: str) -> np.ndarray:
    """Quantise and dequantise one vector in double precision, with the matrix written out and no kv_reference."""
    block = vector.size & -vector.size
    signs = hadamard.signs(block, seed)[0].astype(np.float64)
    matrix = sylvester(block) / math.sqrt(block)
    table = np.array(levels.levels(bits))
    result = []
    for part in vector.astype(np.float64).reshape(-1, block):
        length = np.linalg.norm(part)
        if not length:
            result.append(part)
            continue
        rotated = matrix @ (signs * part)
        unit = rotated / (length / math.sqrt(block))
        nearest = table[np.abs(unit[:, None] - table).argmin(axis=1)]
        fits = {"length": length / np.linalg.norm(nearest), "least-squares": rotated @ nearest / (nearest @ nearest)}
        result.append(signs * (matrix @ (nearest * np.float64(np.float16(fits[scale])))))
    return np.concatenate(result)


@pytest.mark.parametrize("scale", ["length", "least-squares"])
@settings(deadline=None, max_examples=60)
@given(size=sizes, bits=widths, seed=st.integers(0, 2**32 - 1), power=st.integers(-3, 3))
def test_a_vector_comes_back_as_the_plain_implementation_says(scale, size, bits, seed, power):
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed % 1000)) * 10.0**power
    codec = Codec(size, bits, seed, scale)
    found = dequantise(quantise(vector[None], codec), codec, torch.float32)[0].double().numpy()
    wanted = plainly(vector.numpy(), bits, seed, scale)
    # float32 may put a number that lies between two levels to the other one, which moves it by at most their distance.
    distance = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert distance < 4 / 2**bits / math.sqrt(size) + 2e-3


@settings(deadline=None)
@given(rows=st.sampled_from([8, 16, 64, 512]), bits=widths, count=st.integers(0, 5), seed=st.integers(0, 9))
def test_packing_loses_nothing_and_takes_the_bits_that_it_says(rows, bits, count, seed):
    codes = torch.randint(0, 2**bits, (rows, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = kv_reference.pack(codes, bits)
    assert packed.shape == (rows * bits // 8, count)
    assert packed.dtype == torch.uint8
    assert torch.equal(kv_reference.unpack(packed, rows, bits), codes)


@settings(deadline=None, max_examples=60)
@given(
    size=sizes, bits=widths, batch=st.integers(1, 3), heads=st.integers(1, 4), tokens=st.integers(1, 40),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_token_does_not_depend_on_those_beside_it(size, bits, batch, heads, tokens, dtype, seed):
    vectors = torch.randn(batch, heads, tokens, size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    codec = Codec(size, bits, seed)
    packed = quantise(vectors, codec)
    whole = dequantise(packed, codec, dtype)
    assert whole.dtype == dtype
    assert whole.shape == vectors.shape
    assert packed.codes.nbytes + packed.scales.nbytes == batch * heads * tokens * codec.bytes
    at = tuple(
        int(torch.randint(0, limit, (), generator=torch.Generator().manual_seed(seed))) for limit in whole.shape[:3]
    )
    alone = quantise(vectors[at][None], codec)
    assert torch.equal(alone.codes[0], packed.codes[at])
    assert torch.equal(alone.scales[0], packed.scales[at])
    assert torch.equal(dequantise(alone, codec, dtype)[0], whole[at])


def test_more_than_a_piece_at_a_time():
    codec = Codec(128, 3, 1)
    vectors = torch.randn(3, 2100, 128)
    packed = quantise(vectors, codec)
    found = dequantise(packed, codec, torch.float32)
    for head in range(3):
        one = quantise(vectors[head, ::7], codec)
        assert torch.equal(one.codes, packed.codes[head, ::7])
        assert torch.equal(dequantise(one, codec, torch.float32), found[head, ::7])


def test_vectors_that_lie_apart_in_memory():
    codec = Codec(64, 4, 0)
    vectors = torch.randn(2, 9, 3, 128).transpose(1, 2)[..., 32:96]
    assert torch.equal(quantise(vectors, codec).codes, quantise(vectors.contiguous(), codec).codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("size", [64, 96, 512])
def test_the_error_is_the_theory_s(bits, size):
    vectors = (
        torch.randn(4000, size, generator=torch.Generator().manual_seed(bits)) * torch.linspace(0.1, 30, 4000)[:, None]
    )
    # Energy in few numbers, as keys have it: the rotation makes that no worse.
    vectors[:, :: size // 4] *= 8
    wanted = levels.squared_error(bits)
    for scale, loss in (("length", wanted + wanted**2 / 4), ("least-squares", wanted)):
        codec = Codec(size, bits, 0, scale)
        found = dequantise(quantise(vectors, codec), codec, torch.float32)
        blocks = vectors.view(len(vectors), -1, codec.block), found.view(len(vectors), -1, codec.block)
        error = ((blocks[0] - blocks[1]).square().sum(-1) / blocks[0].square().sum(-1)).mean().item()
        # Few numbers in a block are less spread than a normal variable, many bits feel half precision's own rounding.
        assert 0.75 * loss < error < 1.06 * loss + 1e-7


@settings(deadline=None, max_examples=40)
@given(size=sizes, bits=widths, power=st.integers(-3, 4), seed=st.integers(0, 99))
def test_the_length_is_kept(size, bits, power, seed):
    vectors = torch.randn(8, size, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    codec = Codec(size, bits, seed)
    found = dequantise(quantise(vectors, codec), codec, torch.float32)
    assert torch.allclose(found.norm(dim=-1), vectors.norm(dim=-1), rtol=2**-11 + 1e-5, atol=0)


def test_least_squares_is_nearer_and_shorter():
    vectors = torch.randn(500, 128, generator=torch.Generator().manual_seed(0))
    found = {
        scale: dequantise(quantise(vectors, Codec(128, 2, 0, scale)), Codec(128, 2, 0), torch.float32)
        for scale in ("length", "least-squares")
    }
    errors = {scale: (one - vectors).norm().item() for scale, one in found.items()}
    assert errors["least-squares"] < errors["length"]
    assert (found["least-squares"].norm(dim=-1) < vectors.norm(dim=-1)).all()


def test_one_large_number_does_not_ruin_the_others():
    vector = torch.full((1, 128), 0.5)
    vector[0, 17] = 100.0
    codec = Codec(128, 4, 0)
    found = dequantise(quantise(vector, codec), codec, torch.float32)
    assert (found - vector).norm() / vector.norm() < 0.15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bits", range(2, 9))
def test_zeros_come_back_as_zeros_and_the_greatest_half_precision_numbers_do_not_overflow(bits, dtype):
    codec = Codec(128, bits, 0)
    assert not dequantise(quantise(torch.zeros(2, 128, dtype=dtype), codec), codec, dtype).any()
    great = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)).mul(12_000).to(dtype)
    found = dequantise(quantise(great, codec), codec, torch.float32)
    assert found.isfinite().all()
    assert torch.allclose(found.norm(dim=-1), great.float().norm(dim=-1), rtol=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bits", range(2, 9))
def test_what_is_not_finite_does_not_come_back_as_if_it_were(bits, value):
    vectors = torch.randn(3, 64)
    clean = vectors.clone()
    vectors[1, 5] = value
    codec = Codec(64, bits, 0)
    found = dequantise(quantise(vectors, codec), codec, torch.float32)
    wanted = dequantise(quantise(clean, codec), codec, torch.float32)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])


@pytest.mark.parametrize(("size", "block"), [(64, 64), (96, 32), (80, 16), (576, 64), (112, 16)])
def test_the_block_of_a_head_size(size, block):
    assert block_size(size) == block


@pytest.mark.parametrize("size", [72, 100, 120, 7, 8])
def test_heads_without_a_power_of_two_are_refused(size):
    with pytest.raises(InputError, match=f"heads of {size} numbers"):
        block_size(size)


def test_nothing_is_kept_of_a_gradient():
    codec = Codec(64, 4, 0)
    packed = quantise(torch.randn(2, 64, requires_grad=True), codec)
    assert not packed.codes.requires_grad
    assert not packed.scales.requires_grad
    assert isinstance(packed, Packed)
