"""The FP4 kernels: every backend gives the reference's bytes; numbers are the nearest; nothing is accepted unmeant."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tq_kernels import float4, float4_reference
from tq_kernels.types import NonFiniteWeight

DTYPES = ["BF16", "F16", "F32"]
KINDS = {
    "normal": lambda normal, powers: normal * 0.02,
    "heavy": lambda normal, powers: normal**3,
    "row_magnitudes": lambda normal, powers: normal * np.exp2(powers[:, :1] * 120),
    "magnitudes": lambda normal, powers: normal * np.exp2(powers * 120),
    "half_magnitudes": lambda normal, powers: normal * np.exp2(powers * 20 - 8),
    "denormal": lambda normal, powers: normal * 1e-40,
    "denormal_halves": lambda normal, powers: normal * 2e-5,
    "zero": lambda normal, powers: normal * 0,
    "constant": lambda normal, powers: normal * 0 - 0.3,
    "eighths": lambda normal, powers: np.rint(normal * 16) / 8,
}
NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def as_weight(values: np.ndarray, dtype: str, stored_as) -> np.ndarray:
    return stored_as(np.clip(values, -50000, 50000) if dtype == "F16" else values, dtype)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 9),
    groups=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(sorted(KINDS)),
    kind=st.sampled_from(["mx", "nv"]),
    absmax=st.sampled_from([0.0, 1e-38, 1e-3, 0.05, 1.0, 300.0, 1e30]),
)
def test_equal_to_the_reference(rows, groups, seed, dtype, name, kind, absmax, native, stored_as):
    random = np.random.default_rng(seed)
    shape = (rows, groups * float4.GROUPS[kind])
    weight = as_weight(KINDS[name](random.standard_normal(shape), random.uniform(-1, 1, shape)), dtype, stored_as)
    scale = float4.global_scale(min(absmax, 65504.0) if dtype == "F16" else absmax, dtype)
    found = float4.encode(weight, dtype, kind, global_scale=scale)
    expected = float4_reference.encode(weight, dtype, kind, scale)
    for array, other in zip(found, expected, strict=True):
        assert (array.dtype, array.shape) == (np.uint8, other.shape)
        assert array.tobytes() == other.tobytes()
    decoded = float4.decode(*found, kind, global_scale=scale)
    assert decoded.shape == weight.shape
    assert decoded.tobytes() == float4_reference.decode(*expected, kind, scale).tobytes()


@pytest.mark.parametrize("kind", ["mx", "nv"])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_number_of_two_bytes(dtype, kind, native):
    """Each magnitude that is accepted, in groups that it shares with numbers of its size and of none."""
    # From 1.75 times the greatest power of two on, an MX scale would need the next one.
    numbers = np.arange(0x7F60 if dtype == "BF16" else 0x7B00, dtype=np.uint16)
    random = np.random.default_rng(4)
    signs = random.integers(0, 2, (2, len(numbers))).astype(np.uint16) << np.uint16(15)
    weight = np.stack([numbers, random.permutation(numbers)]) | signs
    weight = np.ascontiguousarray(weight[:, : len(numbers) // 32 * 32]).view(
        np.uint16 if dtype == "BF16" else np.float16
    )
    found = float4.encode(weight, dtype, kind, global_scale=100.0)
    expected = float4_reference.encode(weight, dtype, kind, 100.0)
    assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]


@pytest.mark.parametrize("kind", ["mx", "nv"])
def test_every_byte_is_decoded(kind, native):
    codes = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 512 // float4.GROUPS[kind], axis=1)
    with np.errstate(invalid="ignore"):
        found = float4.decode(codes, scales, kind, global_scale=3.0)
        expected = float4_reference.decode(codes, scales, kind, 3.0)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found[:255]), np.signbit(expected[:255]))


def test_mx_numbers_are_the_nearest(backend, stored_as):
    """Under a scale of 1, ties go to the number whose code is even, and what is above 6 becomes 6."""
    values = np.linspace(-7, 7, 32 * 57)[: 32 * 56].reshape(-1, 32)
    values[:, 0] = 4.5
    values[0, 1:8] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]
    weight = stored_as(values, "F32")
    codes, scales = float4.encode(weight, "F32", "mx")
    assert np.all(scales[np.abs(weight).max(axis=1) < 7] == 127)
    decoded = float4.decode(codes, scales, "mx").astype(np.float64)
    assert decoded[0, 1:8].tolist() == [0, 1, 1, 2, 2, 4, 4]
    nearest = np.abs(np.abs(weight)[..., None] - NUMBERS).min(axis=-1)
    assert np.allclose(np.abs(decoded - weight)[scales[:, 0] == 127], nearest[scales[:, 0] == 127], atol=1e-6)


def test_the_first_weight_lies_in_the_lower_half(backend):
    weight = np.zeros((1, 32), np.float32)
    weight[0, :4] = [4, -0.5, 1.5, 6]
    codes, scales = float4.encode(weight, "F32", "mx")
    assert (codes[0, :2].tolist(), scales.tolist()) == ([0x96, 0x73], [[127]])


@pytest.mark.parametrize(
    ("absmax", "dtype", "scale"),
    [
        (6.0, "F32", np.float32(2688) * (np.float32(1) / np.float32(6))),
        (4.15625, "BF16", 644.0),  # 1 / absmax is rounded to BF16, and then its multiple
        (0.3701171875, "F16", 7260.0),
        (0.0, "BF16", 1.0),
        (1e-38, "F32", 1.0),
        (0.03125, "F16", 86016.0),  # beyond float16, so not rounded to it
    ],
)
def test_global_scale(absmax, dtype, scale):
    assert float4.global_scale(absmax, dtype) == scale


@pytest.mark.parametrize(("absmax", "dtype"), [(-1.0, "F32"), (np.nan, "F32"), (np.inf, "BF16"), (65536.0, "F16")])
def test_magnitudes_that_there_are_not(absmax, dtype):
    with pytest.raises(ValueError, match=f"finite {dtype} number and not negative"):
        float4.global_scale(absmax, dtype)


@pytest.mark.parametrize("kind", ["mx", "nv"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_row_that_is_not_finite(value, dtype, kind, backend, stored_as):
    values = np.ones((40, 256))
    weight = stored_as(values, dtype)
    weight[17, 200] = weight[31, 3] = {"BF16": 0x7FC0 if np.isnan(value) else 0x7F80}.get(dtype, value)
    with pytest.raises(NonFiniteWeight) as caught:
        float4.encode(weight, dtype, kind)
    assert caught.value.row == 17


@pytest.mark.parametrize(("dtype", "value"), [("F32", 1.75 * 2.0**127), ("BF16", 1.75 * 2.0**127), ("F16", 57344.0)])
def test_powers_of_two_that_the_dtype_has_not(dtype, value, backend, stored_as):
    values = np.ones((4, 64))
    values[2, 60] = value * (1 - 2.0**-7)
    float4.encode(stored_as(values, dtype), dtype, "mx")
    values[2, 60] = value
    with pytest.raises(NonFiniteWeight) as caught:
        float4.encode(stored_as(values, dtype), dtype, "mx")
    assert caught.value.row == 2


def test_no_rows(backend):
    codes, scales = float4.encode(np.empty((0, 64), np.float32), "F32", "mx")
    assert (codes.shape, scales.shape) == ((0, 32), (0, 2))
    assert float4.decode(codes, scales, "mx").shape == (0, 64)


def test_refused_arguments(backend):
    weight = np.ones((4, 64), np.float32)
    for array, dtype, kind, scale, message in (
        (weight, "F32", "fp", 1.0, "kind must be one of mx, nv"),
        (weight[:, :48].copy(), "F32", "mx", 1.0, "multiple of 32"),
        (weight[:, :24].copy(), "F32", "nv", 1.0, "multiple of 16"),
        (weight, "F32", "nv", 0.0, "finite and positive"),
        (weight, "F32", "nv", np.inf, "finite and positive"),
        (weight, "F16", "mx", 1.0, "must come as float16"),
        (weight, "F64", "mx", 1.0, "dtype must be one of"),
        (np.asfortranarray(weight), "F32", "mx", 1.0, "C-contiguous"),
        (weight.reshape(-1), "F32", "mx", 1.0, "expected a matrix"),
    ):
        with pytest.raises(ValueError, match=message):
            float4.encode(array, dtype, kind, global_scale=scale)


def test_refused_codes(backend):
    codes, scales = float4.encode(np.ones((4, 64), np.float32), "F32", "mx")
    for bad_codes, bad_scales, message in (
        (codes.view(np.int8), scales, "uint8 matrix"),
        (codes[:, :7].copy(), scales, "multiple of 32"),
        (codes, scales[:, :1].copy(), r"need scales of shape \(4, 2\)"),
        (np.asfortranarray(codes), scales, "C-contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            float4.decode(bad_codes, bad_scales, "mx")
