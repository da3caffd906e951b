"""Trellis and uniform weights as torch tensors: kernels and plain torch give the same bits, on any thread."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tq_kernels import tensor_rows, trellis, trellis_tensors, uniform, uniform_tensors

from tqcli.codec import trellis as codec

NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def bits_of(tensor):
    """The bits of a tensor, so that -0 is not 0."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def trellis_weight(rows, columns, bits, seed=0):
    """Any bits are a valid weight, but for a scale's exponent of 31."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 256, (rows, columns * bits // 8), dtype=np.uint8)
    shape = (rows, len(trellis.groups(columns)))
    fields, starts = random.integers(0, 31 << (3 + bits), shape), random.integers(0, 1 << (8 - bits), shape)
    return codes, (fields | starts << (8 + bits)).astype(np.uint16).view(np.int16)


def uniform_weight(rows, columns, bits, group_size, seed=0):
    random = np.random.default_rng(seed)
    width = uniform.row_bytes(columns, bits)
    kind = np.int8 if bits == 8 else np.uint8
    codes = random.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (rows, width)).astype(kind)
    scales = random.standard_normal((rows, uniform.groups(columns, group_size))).astype(np.float16)
    # A last column without a second one in its byte has zeros beside it.
    if bits == 4 and columns % 2:
        codes[:, -1] &= 15
    return codes, scales


def as_tensors(pair):
    return tuple(torch.from_numpy(array) for array in pair)


@given(
    rows=st.integers(1, 5),
    sixteens=st.integers(1, 40),
    bits=st.sampled_from([2, 3, 4]),
    rotation=st.sampled_from(["hadamard", "none"]),
    dtype=st.sampled_from(list(NAMES)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_trellis_in_plain_torch(rows, sixteens, bits, rotation, dtype, seed):
    columns, tables = 16 * sixteens, codec.tables(bits, rotation, seed, 3)
    stored = trellis_weight(rows, columns, bits, seed)
    expected = trellis.decode(*stored, columns, tables, dtype=NAMES[dtype])
    native = trellis_tensors.decode_tensor(*as_tensors(stored), columns, tables, dtype)
    plain = torch.empty(rows, columns, dtype=dtype)
    trellis_tensors.decode_in_torch(*as_tensors(stored), tables, plain)
    assert tensor_rows.as_array(native).tobytes() == expected.tobytes()
    assert torch.equal(bits_of(plain), bits_of(native))


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 400),
    bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from(uniform.GROUP_SIZES),
    dtype=st.sampled_from(list(NAMES)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_uniform_in_plain_torch(rows, columns, bits, group_size, dtype, seed):
    stored = uniform_weight(rows, columns, bits, group_size, seed)
    expected = uniform.decode(*stored, columns, bits, group_size, dtype=NAMES[dtype])
    native = uniform_tensors.decode_tensor(*as_tensors(stored), columns, bits, group_size, dtype)
    plain = torch.empty(rows, columns, dtype=dtype)
    uniform_tensors.decode_in_torch(*as_tensors(stored), group_size, plain)
    assert tensor_rows.as_array(native).tobytes() == expected.tobytes()
    assert torch.equal(bits_of(plain), bits_of(native))


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_join_to_the_whole(threads, native, monkeypatch):
    """Smaller pieces than rows have bytes, and the chunks of plain torch too."""
    stored = as_tensors(trellis_weight(37, 368, 3))
    tables = codec.tables(3, "hadamard", 42, 3)
    whole = trellis_tensors.decode_tensor(*stored, 368, tables, torch.bfloat16)
    codes, scales = as_tensors(uniform_weight(37, 100, 4, 64))
    table = uniform_tensors.decode_tensor(codes, scales, 100, 4, 64, torch.float16)
    monkeypatch.setattr(tensor_rows, "_PIECE_BYTES", 2000)
    monkeypatch.setattr(trellis_tensors, "_CHUNK_WEIGHTS", 1000)
    monkeypatch.setattr(uniform_tensors, "_CHUNK_WEIGHTS", 1000)
    again = trellis_tensors.decode_tensor(*stored, 368, tables, torch.bfloat16, threads=threads)
    assert torch.equal(bits_of(again), bits_of(whole))
    again = uniform_tensors.decode_tensor(codes, scales, 100, 4, 64, torch.float16, threads=threads)
    assert torch.equal(bits_of(again), bits_of(table))
    plain = torch.empty_like(whole)
    trellis_tensors.decode_in_torch(*stored, tables, plain)
    assert torch.equal(bits_of(plain), bits_of(whole))
    plain = torch.empty_like(table)
    uniform_tensors.decode_in_torch(codes, scales, 64, plain)
    assert torch.equal(bits_of(plain), bits_of(table))


def test_parameters_and_no_rows(native):
    stored = [torch.nn.Parameter(part, requires_grad=False) for part in as_tensors(trellis_weight(2, 144, 2))]
    tables = codec.tables(2, "none", 42, 3)
    assert trellis_tensors.decode_tensor(*stored, 144, tables, torch.float32).shape == (2, 144)
    none = [part[:0] for part in stored]
    assert trellis_tensors.decode_tensor(*none, 144, tables, torch.float32).shape == (0, 144)
    codes, scales = (part[:0] for part in as_tensors(uniform_weight(2, 99, 8, 32)))
    assert uniform_tensors.decode_tensor(codes, scales, 99, 8, 32, torch.float32).shape == (0, 99)


def test_refused():
    tables = codec.tables(3, "none", 42, 3)
    codes, meta = as_tensors(trellis_weight(4, 128, 3))

    def decode(codes=codes, meta=meta, columns=128, dtype=torch.float32, threads=1):
        return trellis_tensors.decode_tensor(codes, meta, columns, tables, dtype, threads=threads)

    with pytest.raises(TypeError, match=r"not torch\.float64"):
        decode(dtype=torch.float64)
    with pytest.raises(TypeError, match=r"uint8, not torch\.int8"):
        decode(codes.to(torch.int8))
    with pytest.raises(TypeError, match=r"int16, not torch\.int32"):
        decode(meta=meta.to(torch.int32))
    with pytest.raises(ValueError, match="144 columns"):
        decode(columns=144)
    with pytest.raises(ValueError, match="multiple of 16"):
        decode(columns=130)
    with pytest.raises(ValueError, match="as many rows"):
        decode(meta=meta[:3])
    with pytest.raises(ValueError, match="contiguous"):
        decode(codes.T.contiguous().T)
    with pytest.raises(ValueError, match="codes are on"):
        decode(meta=meta.to("meta"))
    with pytest.raises(ValueError, match="threads must be"):
        decode(threads=0)
    codes, scales = as_tensors(uniform_weight(4, 100, 8, 32))
    with pytest.raises(TypeError, match="uint8"):
        uniform_tensors.decode_tensor(codes, scales, 100, 4, 32, torch.float32)
    with pytest.raises(TypeError, match="float16"):
        uniform_tensors.decode_tensor(codes, scales.float(), 100, 8, 32, torch.float32)
    with pytest.raises(ValueError, match="100 columns"):
        uniform_tensors.decode_tensor(codes, scales, 100, 8, 64, torch.float32)


@pytest.mark.parametrize("dtype", NAMES)
def test_other_devices_take_plain_torch(dtype):
    """The meta device has no numbers, but refuses to mix its tensors with the CPU's."""
    for rotation in ("hadamard", "none"):
        stored = (part.to("meta") for part in as_tensors(trellis_weight(3, 368, 3)))
        found = trellis_tensors.decode_tensor(*stored, 368, codec.tables(3, rotation, 42, 3), dtype)
        assert (found.device.type, found.shape, found.dtype) == ("meta", (3, 368), dtype)
    for bits in (4, 8):
        stored = (part.to("meta") for part in as_tensors(uniform_weight(3, 99, bits, 32)))
        found = uniform_tensors.decode_tensor(*stored, 99, bits, 32, dtype)
        assert (found.device.type, found.shape, found.dtype) == ("meta", (3, 99), dtype)


def test_rows_are_cut_whole_and_once(monkeypatch):
    monkeypatch.setattr(tensor_rows, "_PIECE_BYTES", 10)
    seen, lock = [], threading.Lock()

    def work(start, stop):
        with lock:
            seen.append((start, stop, threading.current_thread() is threading.main_thread()))

    tensor_rows.by_rows(work, rows=8, row_bytes=3, threads=2)
    assert sorted(seen) == [(0, 3, False), (3, 6, False), (6, 8, False)]
    seen.clear()
    tensor_rows.by_rows(work, rows=8, row_bytes=3, threads=1)
    assert seen == [(0, 3, True), (3, 6, True), (6, 8, True)]
    seen.clear()
    tensor_rows.by_rows(work, rows=0, row_bytes=3, threads=2)
    assert seen == []


def test_the_first_failure_is_the_one_that_is_raised(monkeypatch):
    monkeypatch.setattr(tensor_rows, "_PIECE_BYTES", 1)
    later = threading.Event()

    def work(start, stop):
        if start == 0:
            later.wait(5)
        else:
            later.set()
        raise ValueError(start)

    with pytest.raises(ValueError, match=r"^0$"):
        tensor_rows.by_rows(work, rows=4, row_bytes=1, threads=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", NAMES)
def test_equal_on_the_gpu(dtype):
    for bits in (2, 3, 4):
        for rotation in ("hadamard", "none"):
            stored, tables = as_tensors(trellis_weight(64, 1008, bits)), codec.tables(bits, rotation, 42, 3)
            expected = trellis_tensors.decode_tensor(*stored, 1008, tables, dtype)
            found = trellis_tensors.decode_tensor(*(part.cuda() for part in stored), 1008, tables, dtype)
            assert torch.equal(bits_of(found.cpu()), bits_of(expected))
    for bits in (4, 8):
        stored = as_tensors(uniform_weight(64, 1001, bits, 64))
        expected = uniform_tensors.decode_tensor(*stored, 1001, bits, 64, dtype)
        found = uniform_tensors.decode_tensor(*(part.cuda() for part in stored), 1001, bits, 64, dtype)
        assert torch.equal(bits_of(found.cpu()), bits_of(expected))
