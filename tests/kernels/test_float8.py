"""FP8 kernels: native backends equal the reference, all equal torch's own FP8, and edges are what they are."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tq_kernels import float8
from tq_kernels.backends import selected
from tq_kernels.types import NonFiniteWeight

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
DTYPES = list(TORCH)
DIVISIONS = ["float32", "weight"]
BLOCKS = [(1, 150), (128, 128), (3, 7), (1000, 1000)]
KINDS = {
    "normal": lambda values, random: values * 0.02,
    "heavy tails": lambda values, random: random.standard_t(2, values.shape),
    "rows of many magnitudes": lambda values, random: values * np.exp(random.standard_normal((len(values), 1)) * 20),
    "many magnitudes": lambda values, random: values * np.exp(random.standard_normal(values.shape) * 20),
    "denormal": lambda values, random: values * 1e-39,
    "denormal halves": lambda values, random: values * 1e-6,
    "the scale is denormal": lambda values, random: values * 1e-42,
    "huge": lambda values, random: np.sign(values) * np.finfo(np.float32).max,
    "zero": lambda values, random: np.zeros_like(values),
    "negative zero": lambda values, random: np.where(random.random(values.shape) < 0.5, -0.0, values),
    "constant": lambda values, random: np.full_like(values, -0.1),
    "one-sided": lambda values, random: -np.abs(values),
    "sparse": lambda values, random: values * (random.random(values.shape) < 0.02),
    "halfway": lambda values, random: np.linspace(-448, 448, values.size).reshape(values.shape).round() / 16,
}
many = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def as_torch(array, dtype):
    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if dtype == "BF16" else tensor


def results(weight, dtype, block, division):
    codes, scales = float8.encode(weight, dtype, block, division=division)
    decoded = float8.decode(codes, scales, block)
    assert (codes.shape, codes.dtype, decoded.shape, decoded.dtype) == (
        weight.shape,
        np.uint8,
        weight.shape,
        np.float32,
    )
    return codes.tobytes(), scales.shape, scales.dtype, scales.tobytes(), decoded.tobytes()


def in_torch(weight, dtype, division):
    """Codes and scales of rows, with the types of torch in place of ours."""
    values = as_torch(weight, dtype)
    scales = values.abs().amax(1, keepdim=True) / torch.tensor(448.0, dtype=values.dtype)
    scales = torch.where(scales == 0, torch.tensor(torch.finfo(values.dtype).eps, dtype=values.dtype), scales)
    quotients = values / scales if division == "weight" else values.float() / scales.float()
    return quotients.clamp(-448, 448).to(torch.float8_e4m3fn), scales


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_equals_reference(kind, dtype, native, stored_as, monkeypatch):
    random = np.random.default_rng(len(kind))
    with np.errstate(over="ignore"):
        values = np.clip(KINDS[kind](random.standard_normal((141, 150)), random), -3e38, 3e38)
    weight = stored_as(values, dtype)
    for block in BLOCKS:
        for division in DIVISIONS:
            monkeypatch.setenv("TQ_KERNELS", native)
            found = results(weight, dtype, block, division)
            monkeypatch.setenv("TQ_KERNELS", "reference")
            assert found == results(weight, dtype, block, division), (block, division)


@many
@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 200),
    block=st.tuples(st.integers(1, 50), st.integers(1, 250)),
    dtype=st.sampled_from(DTYPES),
    division=st.sampled_from(DIVISIONS),
    power=st.integers(-44, 36),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(rows, columns, block, dtype, division, power, seed, native, stored_as, monkeypatch):
    weight = stored_as(np.random.default_rng(seed).standard_normal((rows, columns)) * 10.0**power, dtype)
    monkeypatch.setenv("TQ_KERNELS", native)
    found = results(weight, dtype, block, division)
    monkeypatch.setenv("TQ_KERNELS", "reference")
    assert found == results(weight, dtype, block, division)


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_number_of_two_bytes(dtype, division, backend):
    """Each row holds every finite number up to its greatest, with both signs, and torch agrees on all of them."""
    infinity = {"BF16": 0x7F80, "F16": 0x7C00}[dtype]
    random = np.random.default_rng(3)
    tops = np.append(random.integers(0, infinity, 20), [0, 1, 2, 447, 448, infinity - 1])
    weight = np.minimum(np.arange(infinity), tops[:, None]).astype(np.uint16)
    weight |= (np.arange(infinity) & 1).astype(np.uint16) << 15
    if dtype == "F16":
        weight = weight.view(np.float16)
    codes, scales = float8.encode(weight, dtype, (1, infinity), division=division)
    expected, expected_scales = in_torch(weight, dtype, division)
    assert torch.equal(as_torch(scales, dtype), expected_scales)
    assert np.array_equal(codes, expected.view(torch.uint8).numpy())


@pytest.mark.parametrize("division", DIVISIONS)
def test_every_code_and_what_is_halfway(division, backend):
    """A scale of 1: each code's number gives the code, a midpoint the even code, and its neighbours the nearer one."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    halfway = (numbers[1:] + numbers[:-1]) / 2
    beside = np.concatenate([np.nextafter(halfway, np.float32(0)), np.nextafter(halfway, np.float32(999))])
    weight = np.concatenate([numbers, -numbers, halfway, -halfway, beside]).reshape(1, -1)
    codes, scales = float8.encode(weight, "F32", (1, weight.shape[1]), division=division)
    codes, at = codes[0], np.arange(126, dtype=np.uint8)
    assert scales.item() == 1
    even = at + at % 2
    expected = [np.arange(127), np.arange(127) + 128, even, even + 128, at, at + 1]
    assert codes.tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_is_torch(dtype, backend, stored_as):
    """All 256 codes; two of them are NaN."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (9, 1))
    scales = stored_as(np.array([1, 0.3, 1e-3, 1e-7, 3e4, 1e-38, 1e-40, 0, 1e38]).reshape(9, 1), dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        decoded = float8.decode(codes, scales, (1, 256))
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float() * as_torch(scales, dtype).float()
    assert np.array_equal(np.isnan(decoded), np.isin(codes, [127, 255]))
    finite = ~np.isnan(decoded)
    assert decoded[finite].tobytes() == expected.numpy()[finite].tobytes()


@pytest.mark.parametrize(("dtype", "epsilon"), [("BF16", 2.0**-7), ("F16", 2.0**-10), ("F32", 2.0**-23)])
def test_zeros_have_epsilon_as_scale(dtype, epsilon, backend, stored_as):
    weight = stored_as(np.array([[0.0, -0.0, 0.0], [0.0, 448.0, -448.0]]), dtype)
    codes, scales = float8.encode(weight, dtype, (1, 3))
    assert codes.tolist() == [[0, 0x80, 0], [0, 0x7E, 0xFE]]
    assert as_torch(scales, dtype).tolist() == [[epsilon], [1.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite(dtype, block, value, backend, stored_as):
    weight = stored_as(np.ones((300, 150)), dtype)
    broken = np.array(value, np.float32)
    word = broken.astype(np.float16) if dtype == "F16" else broken
    weight[[130, 131, 299], [149, 0, 70]] = broken.view(np.uint32) >> 16 if dtype == "BF16" else word
    with pytest.raises(NonFiniteWeight) as caught:
        float8.encode(weight, dtype, block)
    assert caught.value.row == 130


def test_the_floating_point_mode_of_the_caller_is_not_used(native, stored_as):
    weight = stored_as(np.random.default_rng(0).standard_normal((4, 64)) * 1e-39, "F32")
    expected = results(weight, "F32", (1, 64), "float32")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        assert results(weight, "F32", (1, 64), "float32") == expected
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_that_is_not_aligned(dtype, native, stored_as):
    weight = stored_as(np.random.default_rng(0).standard_normal((5, 70)), dtype)
    raw = np.empty(weight.nbytes + 1, np.uint8)
    raw[1:] = weight.reshape(-1).view(np.uint8)
    moved = raw[1:].view(weight.dtype).reshape(weight.shape)
    assert moved.ctypes.data % 2 == 1
    assert results(moved, dtype, (1, 70), "weight") == results(weight, dtype, (1, 70), "weight")


def test_the_library_checks_what_it_is_given(native):
    """Status 2 is a wrong argument, 3 an instruction set that is not there; nothing is read or written then."""
    library = selected()[1]
    small, large, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    types = (small, small, small, large, large, pointer, large, large, pointer, pointer, pointer)
    encode = library.function("tq_float8_encode", *types)
    zeros = np.zeros(64, np.uint8)
    memory = zeros.ctypes.data
    good = [library.instruction_set, 0, 0, 1, 1, memory, 1, 1, memory + 16, memory + 32, memory + 48]
    assert encode(*good) == 0
    for place, value in ((1, 3), (1, -1), (2, 2), (3, 0), (4, 0), (6, -1), (7, 0), (5, 0), (8, 0), (9, 0), (10, 0)):
        assert encode(*good[:place], value, *good[place + 1 :]) == 2, place
    assert encode(77, *good[1:]) == 3
    types = (small, small, large, large, pointer, pointer, large, large, pointer)
    decode = library.function("tq_float8_decode", *types)
    good = [library.instruction_set, 0, 1, 1, memory, memory + 16, 1, 1, memory + 32]
    assert decode(*good) == 0
    for place, value in ((1, 3), (2, 0), (3, 0), (4, 0), (5, 0), (6, -1), (7, 0), (8, 0)):
        assert decode(*good[:place], value, *good[place + 1 :]) == 2, place
    assert decode(77, *good[1:]) == 3


def test_refused(backend):
    ones, codes, scales = np.ones((4, 6), np.float32), np.zeros((4, 6), np.uint8), np.ones((4, 1), np.float32)
    for weight, dtype, block, division, why in (
        (ones, "F64", (1, 6), "float32", "dtype must be"),
        (ones, "F16", (1, 6), "float32", "must come as"),
        (ones[0], "F32", (1, 6), "float32", "expected a matrix"),
        (ones[:, :0], "F32", (1, 6), "float32", "at least one column"),
        (ones.T, "F32", (1, 4), "float32", "C-contiguous"),
        (ones, "F32", (0, 6), "float32", "a block must"),
        (ones, "F32", (1, 6), "double", "division must be"),
    ):
        with pytest.raises(ValueError, match=why):
            float8.encode(weight, dtype, block, division=division)
    for stored, factors, block, why in (
        (codes.astype(np.int8), scales, (1, 6), "uint8 matrix"),
        (codes, scales, (2, 6), "need scales of shape"),
        (codes, scales.astype(np.float64), (1, 6), "scales must be"),
        (codes.T, scales, (2, 4), "need scales|C-contiguous"),
        (np.zeros((6, 4), np.uint8).T, scales, (1, 6), "C-contiguous"),
        (codes, scales, (1, 0), "a block must"),
    ):
        with pytest.raises(ValueError, match=why):
            float8.decode(stored, factors, block)
