"""Uniform quantisation: every backend gives the reference's bytes; what scales promise; nothing is accepted unmeant."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tq_kernels import uniform, uniform_reference
from tq_kernels.floats import NUMPY, widen
from tq_kernels.types import NonFiniteWeight

BITS = (8, 4)
SCALES = ("absmax", "search")
DTYPES = ("BF16", "F16", "F32")
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def kinds(random: np.random.Generator, rows: int, columns: int) -> dict[str, np.ndarray]:
    normal = random.standard_normal((rows, columns))
    return {
        "normal": normal * 0.02,
        "heavy": normal**3,
        "row_magnitudes": np.clip(normal * np.exp2(random.integers(-150, 17, (rows, 1))), -5e5, 5e5),
        "magnitudes": normal * np.exp2(random.integers(-40, 10, (rows, columns))),
        "scales_are_denormal_halves": normal * 1e-4,
        "scales_are_the_least_half": normal * 1e-6,
        "faint": normal * 1e-30,
        "denormal": normal * 1e-40,
        "huge": np.sign(normal) * 5.2e5,
        "one_sided": np.abs(normal),
        "sparse": normal * (random.random((rows, columns)) < 0.05),
        "constant": np.full((rows, columns), -0.3),
        "zero": np.zeros((rows, columns)),
        "negative_zero": -np.zeros((rows, columns)),
        "halfway": random.integers(-16, 15, (rows, columns)) * 0.5,
    }


def as_weight(values: np.ndarray, dtype: str, stored_as) -> np.ndarray:
    return stored_as(np.clip(values, -32700, 32700) if dtype == "F16" else values, dtype)


problem = st.fixed_dictionaries(
    {
        "bits": st.sampled_from(BITS),
        "group_size": st.sampled_from(uniform.GROUP_SIZES),
        "rows": st.integers(0, 9),
        "columns": st.integers(1, 600),
        "seed": st.integers(0, 2**32 - 1),
        "scale": st.sampled_from(SCALES),
        "dtype": st.sampled_from(DTYPES),
        "kind": st.sampled_from(sorted(kinds(np.random.default_rng(0), 1, 1))),
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=problem)
def test_equal_to_the_reference(case, native, stored_as):
    values = kinds(np.random.default_rng(case["seed"]), case["rows"], case["columns"])[case["kind"]]
    weight = as_weight(values, case["dtype"], stored_as)
    options = case["bits"], case["group_size"]
    found = uniform.encode(weight, case["dtype"], *options, case["scale"])
    expected = uniform_reference.encode(weight, case["dtype"], *options, case["scale"])
    for array, other in zip(found, expected, strict=True):
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert array.tobytes() == other.tobytes()
    for dtype in DTYPES:
        decoded = uniform.decode(*found, case["columns"], *options, dtype)
        other = uniform_reference.decode(*expected, case["columns"], *options, dtype)
        assert (decoded.dtype, decoded.shape) == (NUMPY[dtype], weight.shape)
        assert decoded.tobytes() == other.tobytes()
    assert np.isfinite(widen(uniform.decode(*found, case["columns"], *options, case["dtype"]), case["dtype"])).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bits", BITS)
def test_every_number_of_two_bytes(bits, scale, dtype, native):
    """Each magnitude that is accepted, in groups that it shares with numbers of its size and of any size."""
    greatest = 0x7800 if dtype == "F16" else 0x4AFD if bits == 8 else 0x48FF
    numbers = np.arange(greatest, dtype=np.uint16)
    random = np.random.default_rng(4)
    signs = random.integers(0, 2, (2, greatest)).astype(np.uint16) << 15
    weight = (np.stack([numbers, random.permutation(numbers)]) | signs).astype(np.uint16).view(NUMPY[dtype])
    found = uniform.encode(weight, dtype, bits, 64, scale)
    expected = uniform_reference.encode(weight, dtype, bits, 64, scale)
    assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]


@pytest.mark.parametrize("scale", SCALES)
def test_eight_bits_are_never_off_by_more_than_half_a_scale(scale, backend, stored_as):
    for kind, values in kinds(np.random.default_rng(5), 20, 300).items():
        weight = stored_as(values, "F32")
        codes, scales = uniform.encode(weight, "F32", 8, 64, scale)
        assert np.isfinite(scales).all(), kind
        assert (scales > 0).all(), kind
        assert codes.min() >= -127, kind
        each = np.repeat(scales.astype(np.float64), 64, axis=1)[:, :300]
        error = np.abs(uniform.decode(codes, scales, 300, 8, 64).astype(np.float64) - weight)
        assert (error <= each * (0.5 + 1e-5)).all(), kind


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", uniform.GROUP_SIZES)
def test_the_search_never_loses(group_size, bits, backend, stored_as):
    for kind, values in kinds(np.random.default_rng(8), 8, group_size * 4).items():
        weight = stored_as(values, "F32")
        before = group_errors(weight, bits, group_size, "absmax")
        after = group_errors(weight, bits, group_size, "search")
        assert np.all(after <= before * (1 + 1e-4)), kind
        if kind == "normal":
            assert after.sum() < before.sum() * 0.97


def group_errors(weight: np.ndarray, bits: int, group_size: int, scale: str) -> np.ndarray:
    decoded = uniform.decode(*uniform.encode(weight, "F32", bits, group_size, scale), weight.shape[1], bits, group_size)
    errors = (decoded.astype(np.float64) - weight) ** 2
    return errors.reshape(len(weight), -1, group_size).sum(axis=-1)


def test_eight_bits_by_hand(backend):
    """Scales 127 / 127, and 1 / 127 = 0x1.02040p-7 in float32 -> 0x1.024p-7; halves go to the even code."""
    weight = np.zeros((1, 35), np.float32)
    weight[0, :7] = [127, -127, 0.5, 1.5, -2.5, 100.49, -0.0]
    weight[0, 32:] = [-1, 0.5, 0.01]
    codes, scales = uniform.encode(weight, "F32", 8, 32, "absmax")
    assert (codes.dtype, scales.dtype) == (np.int8, np.float16)
    assert codes[0].tolist() == [127, -127, 0, 2, -2, 100, *[0] * 26, -127, 63, 1]
    assert scales[0].astype(float).tolist() == [1.0, float.fromhex("0x1.024p-7")]
    decoded = uniform.decode(codes, scales, 35, 8, 32)
    assert decoded[0, 32:].tolist() == [code * float.fromhex("0x1.024p-7") for code in (-127, 63, 1)]


def test_four_bits_by_hand(backend):
    """The greatest magnitude becomes -8, by a negative scale where it is positive; even columns in the low halves."""
    weight = np.zeros((2, 35), np.float32)
    weight[0, :5] = [-8, 7, 3, -1, 2.5]
    weight[0, 32:] = [16, -14, -16]  # as far on both sides: the scale stays positive
    weight[1, 31] = weight[1, 34] = 4
    codes, scales = uniform.encode(weight, "F32", 4, 32, "absmax")
    assert (codes.dtype, codes.shape) == (np.uint8, (2, 18))
    assert scales.tolist() == [[1.0, 2.0], [-0.5, -0.5]]
    assert codes[0].tolist() == [0x78, 0xF3, 0x02, *[0] * 13, 0x97, 0x08]
    assert codes[1].tolist() == [*[0] * 15, 0x80, 0x00, 0x08]
    decoded = uniform.decode(codes, scales, 35, 4, 32)
    assert decoded[0, :5].tolist() == [-8, 7, 3, -1, 2]
    assert decoded[0, 32:].tolist() == [14, -14, -16]
    assert decoded[1, [30, 31, 33, 34]].tolist() == [0, 4, 0, 4]


def test_scales_that_are_rounded_up(backend):
    """Down to the least half: what is rounded up cuts nothing off, and a group of zeros decodes to zeros."""
    weight = np.zeros((4, 32), np.float32)
    weight[:, 0] = [1.4 * 127 * 2.0**-24, 2.0**-24, 1e-45, 0]
    codes, scales = uniform.encode(weight, "F32", 8, 32, "absmax")
    assert (scales[:, 0].astype(np.float64) * 2**24).tolist() == [2, 1, 1, 1]
    assert codes[:, 0].tolist() == [89, 1, 0, 0]
    assert not codes[:, 1:].any()


@pytest.mark.parametrize("bits", BITS)
def test_the_greatest_weights(bits, backend, stored_as):
    for dtype, greatest in (("F32", 65504.0 * (127 if bits == 8 else 8)), ("F16", 32752.0)):
        values = np.full((3, 64), 1.0, np.float32)
        values[1, 5] = -greatest
        for scale in SCALES:
            decoded = uniform.decode(
                *uniform.encode(stored_as(values, dtype), dtype, bits, 32, scale), 64, bits, 32, dtype
            )
            assert abs(float(decoded[1, 5]) / -greatest - 1) < 0.06
        values[1, 5] = 32768 if dtype == "F16" else np.nextafter(np.float32(greatest), np.float32(np.inf))
        with pytest.raises(uniform.ScaleTooLarge, match="row 1 holds a weight too large"):
            uniform.encode(stored_as(values, dtype), dtype, bits, 32, "absmax")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_the_row_that_is_refused(bits, dtype, value, backend):
    values = torch.ones((40, 250))
    values[17, 249], values[31, 3] = value, float("nan")
    stored = values.to(TORCH[dtype])
    weight = stored.view(torch.uint16).numpy() if dtype == "BF16" else stored.numpy()
    for scale in SCALES:
        with pytest.raises(NonFiniteWeight) as caught:
            uniform.encode(weight, dtype, bits, 64, scale)
        assert caught.value.row == 17
        assert not isinstance(caught.value, uniform.ScaleTooLarge)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eight_bits_decode_as_torch_does(dtype, backend):
    """Every code with every seventh finite half, denormal and negative ones too."""
    halves = np.arange(0, 0x7C00, 7, dtype=np.uint16)
    scales = np.concatenate([halves, halves | 0x8000]).view(np.float16).reshape(-1, 1)
    codes = np.ascontiguousarray(np.broadcast_to(np.arange(-128, 128).astype(np.int8), (len(scales), 256)))
    expected = (torch.from_numpy(codes).float() * torch.from_numpy(scales).float()).to(TORCH[dtype])
    assert_equal(uniform.decode(codes, scales, 256, 8, 256, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 77, 256])
def test_four_bits_decode_as_torch_does(columns, dtype, backend):
    random = np.random.default_rng(3)
    codes = random.integers(0, 256, (99, -(-columns // 2))).astype(np.uint8)
    scales = random.standard_normal((99, -(-columns // 32))).astype(np.float16)
    packed = torch.from_numpy(codes).int()
    numbers = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)[:, :columns]
    numbers = numbers - 16 * (numbers > 7)
    each = torch.from_numpy(scales).float().repeat_interleave(32, dim=1)[:, :columns]
    assert_equal(uniform.decode(codes, scales, columns, 4, 32, dtype), (numbers.float() * each).to(TORCH[dtype]))


def assert_equal(decoded: np.ndarray, expected: torch.Tensor) -> None:
    bits = expected.contiguous().view(torch.uint16) if expected.dtype == torch.bfloat16 else expected
    assert decoded.dtype == bits.numpy().dtype
    assert decoded.tobytes() == bits.numpy().tobytes()


@pytest.mark.parametrize("bits", BITS)
def test_rows_alone(bits, backend, stored_as):
    """Any rows decode by themselves, as an embedding reads them, and are encoded so."""
    weight = stored_as(np.random.default_rng(6).standard_normal((50, 173)), "BF16")
    codes, scales = uniform.encode(weight, "BF16", bits, 64, "search")
    whole = uniform.decode(codes, scales, 173, bits, 64, "BF16")
    rows = [49, 0, 7, 7, 23]
    assert np.array_equal(uniform.decode(codes[rows], scales[rows], 173, bits, 64, "BF16"), whole[rows])
    alone = uniform.encode(weight[rows], "BF16", bits, 64, "search")
    assert np.array_equal(alone[0], codes[rows])
    assert np.array_equal(alone[1], scales[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0x7C01, 0x7E00, 0x7FFF, 0xFFFF])
def test_scales_that_are_no_numbers_stay_so(value, dtype, backend):
    scales = np.full((1, 1), value, np.uint16).view(np.float16)
    decoded = uniform.decode(np.ones((1, 40), np.int8), scales, 40, 8, 64, dtype)
    assert np.isnan(widen(decoded, dtype)).all()


@pytest.mark.parametrize("bits", BITS)
def test_no_rows(bits, backend):
    codes, scales = uniform.encode(np.empty((0, 65), np.float32), "F32", bits, 64, "search")
    assert (codes.shape, scales.shape) == ((0, 65 if bits == 8 else 33), (0, 2))
    assert uniform.decode(codes, scales, 65, bits, 64).shape == (0, 65)


def test_refused_arguments(backend):
    weight = np.ones((4, 128), np.float32)
    for array, dtype, bits, group_size, scale, message in (
        (weight, "F32", 5, 64, "search", "bits must be 4 or 8"),
        (weight, "F32", 8, 48, "search", "group_size must be one of 32, 64, 128, 256"),
        (weight[:, :0].copy(), "F32", 8, 64, "search", "at least one column"),
        (weight, "F32", 8, 64, "best", "scale must be one of absmax, search"),
        (weight, "BF16", 8, 64, "search", "must come as uint16"),
        (weight, "F64", 8, 64, "search", "dtype must be one of"),
        (weight.T, "F32", 8, 64, "search", "C-contiguous"),
        (weight.reshape(-1), "F32", 8, 64, "search", "expected a matrix"),
    ):
        with pytest.raises(ValueError, match=message):
            uniform.encode(array, dtype, bits, group_size, scale)


def test_refused_codes(backend):
    codes, scales = uniform.encode(np.ones((4, 129), np.float32), "F32", 8, 64, "absmax")
    for bad_codes, bad_scales, columns, bits, message in (
        (codes, scales, 129, 4, "codes must be uint8"),
        (codes.view(np.uint8), scales, 129, 8, "codes must be int8"),
        (codes, scales.astype(np.float32), 129, 8, "scales float16"),
        (codes, scales, 128, 8, r"128 columns need codes of shape \(rows, 128\)"),
        (codes.view(np.uint8), scales, 129, 4, r"129 columns need codes of shape \(rows, 65\)"),
        (codes[:, :0].copy(), scales, 0, 8, "0 columns"),
        (codes, scales[:, :2].copy(), 129, 8, r"need scales \(4, 3\)"),
        (codes[:3], scales, 129, 8, r"need scales \(3, 3\)"),
        (np.asfortranarray(codes), scales, 129, 8, "C-contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            uniform.decode(bad_codes, bad_scales, columns, bits, 64)
    with pytest.raises(ValueError, match="dtype must be one of"):
        uniform.decode(codes, scales, 129, 8, 64, "F64")
