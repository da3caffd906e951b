"""Head vectors packed and unpacked: every backend gives the bytes of the reference and reads the same bits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tq_kernels import kv, kv_reference
from tq_kernels.kv import KvTables

from tqcli.codec import hadamard
from tqcli.kv import levels

BLOCKS = (16, 32, 64, 128, 256, 512, 1024)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# The fixture stays the same for all examples.
ALL = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tables(bits: int, block: int, scale: str = "length", seed: int = 0) -> KvTables:
    values = levels.levels(bits)
    arrays = values, levels.boundaries(values), hadamard.signs(block, seed)[0]
    return KvTables(bits, block, *(np.array(one, np.float32) for one in arrays), scale)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit; NaN as NaN."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    return one.dtype == other.dtype and torch.equal(one.isnan(), other.isnan()) and same_bits(one, other)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    kept = ~one.isnan()
    return torch.equal(one[kept].contiguous().view(torch.uint8), other[kept].contiguous().view(torch.uint8))


def sample(shape, dtype, seed, spread=6):
    """Of magnitudes that float32 squares to zero, up to those whose factor overflows half precision."""
    generator = torch.Generator().manual_seed(seed)
    powers = torch.randint(-spread, spread, (*shape[:-1], 1), generator=generator)
    return (torch.randn(shape, generator=generator) * 10.0**powers).to(dtype)


@ALL
@given(
    bits=st.integers(2, 8), block=st.sampled_from(BLOCKS), blocks=st.integers(1, 3), count=st.integers(0, 5),
    scale=st.sampled_from(["length", "least-squares"]), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999),
    spread=st.sampled_from([1, 6, 30]),
)  # fmt: skip
def test_the_reference_and_every_backend_agree(backend, bits, block, blocks, count, scale, dtype, seed, spread):
    codec = tables(bits, block, scale, seed)
    vectors = sample((2, count, blocks * block), dtype, seed, spread)
    found, wanted = kv.encode(vectors, codec), kv_reference.encode(vectors, codec)
    assert equal(found[0], wanted[0])
    assert equal(found[1], wanted[1])
    for into in DTYPES:
        assert equal(kv.decode(*wanted, codec, into), kv_reference.decode(*wanted, codec, into))


@pytest.mark.parametrize("bits", range(2, 9))
def test_many_vectors(bits, backend):
    """A root that is not the nearest number moves one scale in a hundred thousand."""
    codec = tables(bits, 32)
    vectors = sample((60_000, 32), torch.float32, bits, 2)
    found, wanted = kv.encode(vectors, codec), kv_reference.encode(vectors, codec)
    assert equal(found[0], wanted[0])
    assert equal(found[1], wanted[1])
    assert equal(kv.decode(*found, codec, torch.bfloat16), kv_reference.decode(*found, codec, torch.bfloat16))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("block", [16, 64])
def test_any_bytes_and_any_scales_are_read(bits, block, backend):
    """All halves: infinity and NaN, whose rounding to bfloat16 must not make numbers of them, denormals, zeros."""
    codec = tables(bits, block)
    halves = torch.arange(0, 1 << 16, 37, dtype=torch.int32).to(torch.int16).view(torch.float16)[:, None]
    generator = torch.Generator().manual_seed(bits)
    shape = (len(halves), kv_reference.packed_rows(block, bits))
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for dtype in DTYPES:
        found = kv.decode(codes, halves, codec, dtype)
        assert equal(found, kv_reference.decode(codes, halves, codec, dtype))
        assert found[~halves.isfinite()[:, 0]].isfinite().sum() == 0


@ALL
@given(bits=st.integers(2, 8), block=st.sampled_from([16, 64, 256]), seed=st.integers(0, 99), axes=st.integers(0, 4))
def test_vectors_and_cells_that_lie_apart_in_memory(backend, bits, block, seed, axes):
    codec = tables(bits, block)
    generator = torch.Generator().manual_seed(seed)
    leading = [int(torch.randint(1, 4, (), generator=generator)) for _ in range(axes)]
    order = torch.randperm(axes, generator=generator).tolist()
    memory = sample((*leading, 3 * block), torch.bfloat16, seed, 2)
    vectors = memory.permute(*order, axes)[..., block : 2 * block]
    wanted = kv_reference.encode(vectors.contiguous(), codec)
    found = kv.encode(vectors, codec)
    assert equal(found[0], wanted[0])
    assert equal(found[1], wanted[1])
    code_bytes = wanted[0].shape[-1]
    cells = torch.zeros(*leading, code_bytes + 10, dtype=torch.uint8).permute(*order, axes)
    cells[..., 4 : 4 + code_bytes] = wanted[0]
    cells[..., 4 + code_bytes : 6 + code_bytes] = wanted[1].view(torch.uint8)
    scales = cells[..., 4 + code_bytes : 6 + code_bytes].view(torch.float16)
    read = kv.decode(cells[..., 4 : 4 + code_bytes], scales, codec, torch.bfloat16)
    assert read.is_contiguous()
    assert equal(read, kv_reference.decode(*wanted, codec, torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(value, dtype, backend):
    codec = tables(4, 64)
    vectors = sample((3, 64), dtype, 0, 1)
    vectors[1, 7] = value
    found, wanted = kv.encode(vectors, codec), kv_reference.encode(vectors, codec)
    assert equal(found[0], wanted[0])
    assert equal(found[1], wanted[1])
    assert not kv.decode(*found, codec, dtype)[1].isfinite().any()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads, backend, monkeypatch):
    codec = tables(3, 128)
    vectors = sample((7001, 128), torch.float32, 1, 2)
    wanted = kv.encode(vectors, codec)
    monkeypatch.setattr(kv, "_threads", lambda: threads)
    found = kv.encode(vectors, codec)
    assert equal(found[0], wanted[0])
    assert equal(found[1], wanted[1])
    monkeypatch.undo()
    wanted_vectors = kv.decode(*wanted, codec, torch.float32)
    monkeypatch.setattr(kv, "_threads", lambda: threads)
    assert equal(kv.decode(*wanted, codec, torch.float32), wanted_vectors)


def test_double_precision_and_blocks_that_the_kernels_do_not_take(backend):
    for block, dtype in ((64, torch.float64), (2048, torch.float32), (2048, torch.float64)):
        codec = tables(4, block)
        vectors = sample((3, block), torch.float32, 2, 2).to(dtype)
        found, wanted = kv.encode(vectors, codec), kv_reference.encode(vectors, codec)
        assert equal(found[0], wanted[0])
        assert equal(found[1], wanted[1])
        assert equal(kv.decode(*found, codec, dtype), kv_reference.decode(*found, codec, dtype))


def test_by_hand(backend):
    """Signs all +1 and a vector of equal numbers: the transform gathers it all in the first, the others are zero.

    Levels -2, -1, 1, 2 and boundaries -1.5, 0, 1.5: a number on a boundary takes the lower code. So the codes are 3
    and fifteen times 1, 16 numbers of squares 4 + 15; the factor is the length, 4 * 2, by the root of 19.
    """
    codec = KvTables(
        2, 16, np.array([-2, -1, 1, 2], np.float32), np.array([-1.5, 0, 1.5], np.float32), np.ones(16, np.float32)
    )
    codes, scales = kv.encode(torch.full((1, 16), 2.0), codec)
    # Byte j holds the codes of numbers j, j + 4, j + 8 and j + 12, lowest bits first.
    assert codes.tolist() == [[0b01010111, 0b01010101, 0b01010101, 0b01010101]]
    assert scales.tolist() == [[float(np.float16(8 / math.sqrt(19)))]]
    factor = np.float32(np.float16(8 / math.sqrt(19))) / np.float32(4)
    read = kv.decode(codes, scales, codec, torch.float32)[0].numpy()
    # H of (2, -1, -1, ...): the first gets 2 - 15, each other one 2 + 1.
    assert np.allclose(read, np.array([-13, *[3] * 15], np.float32) * factor, rtol=1e-6)


def test_refused_arguments(backend):
    good = tables(4, 64)
    vectors = torch.ones(2, 64)
    codes, scales = kv.encode(vectors, good)
    for changed, message in (
        ({"bits": 9}, "no codec has 9 bits"),
        ({"bits": 1}, "no codec has 1 bits"),
        ({"block": 48}, "blocks of 48"),
        ({"block": 8}, "blocks of 8"),
        ({"bits": 3}, "levels must be 8 numbers"),
        ({"block": 128}, "signs must be 128 numbers"),
        ({"boundaries": good.levels}, "boundaries must be 15 numbers"),
        ({"levels": good.levels.astype(np.float64)}, "levels must be 16 numbers of float32"),
        ({"signs": np.ones(128, np.float32)[::2]}, "signs must be 64 numbers of float32, side by side"),
        ({"scale": "largest"}, "scale must be one of length, least-squares"),
    ):
        bad = KvTables(**{name: getattr(good, name) for name in good.__dataclass_fields__} | changed)
        with pytest.raises(ValueError, match=message):
            kv.encode(vectors, bad)
        with pytest.raises(ValueError, match=message):
            kv.decode(codes, scales, bad, torch.float32)
    for size in (0, 32, 96):
        with pytest.raises(ValueError, match=f"vectors of {size} numbers"):
            kv.encode(torch.ones(2, size), good)
    for bad_codes, bad_scales, message in (
        (codes.to(torch.int8), scales, "codes must be uint8"),
        (codes, scales.float(), "scales float16"),
        (codes[:, :31], scales, r"need codes \(2, 32\), got \(2, 31\)"),
        (codes[:1], scales, r"need codes \(2, 32\)"),
        (codes, scales[:, :0], "need codes"),
        (codes, scales.to("meta"), "codes are on cpu, scales on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            kv.decode(bad_codes, bad_scales, good, torch.float32)
