"""The INT4 kernels: every backend gives the reference's bytes; the search never loses; nothing is accepted unmeant."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tq_kernels import int4, int4_reference
from tq_kernels.floats import widen
from tq_kernels.types import NonFiniteWeight

SCALES = ["absmax", "search", "signed"]
DTYPES = ["BF16", "F16", "F32"]


def kinds(random: np.random.Generator, rows: int, columns: int) -> dict[str, np.ndarray]:
    normal = random.standard_normal((rows, columns))
    return {
        "normal": normal * 0.02,
        "heavy": normal**3,
        "row_magnitudes": normal * np.exp2(random.integers(-150, 120, (rows, 1))),
        "magnitudes": normal * np.exp2(random.integers(-40, 10, (rows, columns))),
        "faint": normal * 1e-30,
        "denormal": normal * 1e-40,
        "denormal_halves": normal * 1e-7,
        "huge": np.sign(normal) * 1.5e38,
        "one_sided": np.abs(normal),
        "sparse": normal * (random.random((rows, columns)) < 0.05),
        "constant": np.full((rows, columns), -0.3),
        "zero": np.zeros((rows, columns)),
        "negative_zero": -np.zeros((rows, columns)),
        "grid": random.integers(-16, 15, (rows, columns)) * 0.5,
    }


def as_weight(values: np.ndarray, dtype: str, stored_as) -> np.ndarray:
    return stored_as(np.clip(values, -32000, 32000) if dtype == "F16" else values, dtype)


problem = st.fixed_dictionaries(
    {
        "group_size": st.sampled_from(int4.GROUP_SIZES),
        "rows": st.integers(0, 9),
        "groups": st.integers(1, 5),
        "seed": st.integers(0, 2**32 - 1),
        "scale": st.sampled_from(SCALES),
        "dtype": st.sampled_from(DTYPES),
        "kind": st.sampled_from(sorted(kinds(np.random.default_rng(0), 1, 1))),
    }
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=problem)
def test_equal_to_the_reference(case, native, stored_as):
    values = kinds(np.random.default_rng(case["seed"]), case["rows"], case["group_size"] * case["groups"])
    weight = as_weight(values[case["kind"]], case["dtype"], stored_as)
    found = int4.encode(weight, case["dtype"], case["group_size"], scale=case["scale"])
    expected = int4_reference.encode(weight, case["dtype"], case["group_size"], case["scale"])
    for array, other in zip(found, expected, strict=True):
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert array.tobytes() == other.tobytes()
    decoded = int4.decode(*found, case["group_size"])
    other = int4_reference.decode(*expected, case["dtype"], case["group_size"])
    assert (decoded.dtype, decoded.shape) == (np.float32, weight.shape)
    assert decoded.tobytes() == other.tobytes()
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("scale", SCALES)
def test_every_number_of_two_bytes(scale, dtype, native):
    """Each finite magnitude that is accepted, in groups that it shares with numbers of its size and of none."""
    numbers = np.arange(0x7F00 if dtype == "BF16" else 0x7800, dtype=np.uint16)
    random = np.random.default_rng(4)
    weight = (
        np.stack([numbers, random.permutation(numbers)])
        | random.integers(0, 2, (2, len(numbers))).astype(np.uint16) << 15
    )
    weight = weight.astype(np.uint16).view(np.uint16 if dtype == "BF16" else np.float16)
    weight = np.ascontiguousarray(weight[:, : len(numbers) // 128 * 128])
    found = int4.encode(weight, dtype, 64, scale=scale)
    expected = int4_reference.encode(weight, dtype, 64, scale)
    assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", int4.GROUP_SIZES)
def test_the_search_never_loses(group_size, dtype, backend, stored_as):
    for kind, values in kinds(np.random.default_rng(8), 8, group_size * 4).items():
        weight = as_weight(values, dtype, stored_as)
        before, absmax = group_errors(weight, dtype, group_size, "absmax")
        for scale in ("search", "signed"):
            after, _ = group_errors(weight, dtype, group_size, scale)
            # Where reciprocals of scales overflow float32, errors cannot be compared and the scale may be any.
            assert np.all((after <= before * (1 + 1e-4)) | (absmax < 2.0**-120)), (kind, scale)


def group_errors(weight: np.ndarray, dtype: str, group_size: int, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """The squared error and the greatest magnitude of each group."""
    decoded = int4.decode(*int4.encode(weight, dtype, group_size, scale=scale), group_size)
    truth = widen(weight, dtype).astype(np.float64)
    groups = (len(weight), -1, group_size)
    return ((decoded - truth) ** 2).reshape(groups).sum(axis=-1), np.abs(truth).reshape(groups).max(axis=-1)


def test_weights_on_a_grid_are_kept(backend, stored_as):
    """Whole groups of numbers -8 to 7 times a scale come back: the search finds the scale that gave them."""
    random = np.random.default_rng(9)
    numbers = random.integers(-8, 8, (16, 256))
    numbers[:, ::64] = -8
    numbers[:, 1::64] = 7
    truth = stored_as(numbers * np.exp2(random.integers(-20, 20, (16, 1))), "F32")
    words, scales = int4.encode(truth, "F32", 64, scale="search")
    assert np.array_equal(int4.decode(words, scales, 64), truth)


def test_signed_scales_put_the_greatest_on_the_side_of_minus_eight(backend, stored_as):
    random = np.random.default_rng(10)
    values = random.standard_normal((64, 128))
    above = values.reshape(64, 2, 64).max(axis=-1) > -values.reshape(64, 2, 64).min(axis=-1)
    _, scales = int4.encode(stored_as(values, "F32"), "F32", 64, scale="signed")
    # The scale of absmax, which is positive, is among the candidates.
    assert ((scales < 0) & ~above).sum() == 0
    assert (scales < 0).sum() > 0.9 * above.sum()
    _, scales = int4.encode(stored_as(values, "F32"), "F32", 64, scale="search")
    assert (scales > 0).all()


def test_words(backend, stored_as):
    """The first number lies in the lowest four bits; each is stored as number + 8."""
    weight = stored_as((np.arange(32) % 16 - 8).reshape(1, 32), "F32")
    words, scales = int4.encode(weight, "F32", 32, scale="search")
    assert scales.tolist() == [[1.0]]
    assert words.view(np.uint32).tolist() == [[0x76543210, 0xFEDCBA98, 0x76543210, 0xFEDCBA98]]
    assert int4.decode(words, scales, 32).tolist() == weight.tolist()


@pytest.mark.parametrize(("dtype", "value"), [("F32", np.nan), ("F32", np.inf), ("F32", 2.0**127), ("F16", 32768.0)])
@pytest.mark.parametrize("scale", SCALES)
def test_the_row_that_is_refused(scale, dtype, value, backend, stored_as):
    values = np.ones((40, 256))
    values[17, 200], values[31, 3] = value, np.nan
    with pytest.raises(NonFiniteWeight) as caught:
        int4.encode(stored_as(values, dtype), dtype, 64, scale=scale)
    assert caught.value.row == 17


def test_no_rows(backend):
    words, scales = int4.encode(np.empty((0, 64), np.float32), "F32", 64)
    assert (words.shape, scales.shape) == ((0, 8), (0, 1))
    assert int4.decode(words, scales, 64).shape == (0, 64)


def test_refused_arguments(backend):
    weight = np.ones((4, 128), np.float32)
    for array, dtype, group_size, scale, message in (
        (weight, "F32", 48, "search", "group_size must be one of 32, 64, 128"),
        (weight[:, :96].copy(), "F32", 64, "search", "multiple of 64"),
        (weight[:, :0].copy(), "F32", 64, "search", "multiple of 64"),
        (weight, "F32", 64, "best", "scale must be one of"),
        (weight, "BF16", 64, "search", "must come as uint16"),
        (weight, "F64", 64, "search", "dtype must be one of"),
        (weight.T, "F32", 64, "search", "multiple of 64|C-contiguous"),
        (weight.reshape(-1), "F32", 64, "search", "expected a matrix"),
    ):
        with pytest.raises(ValueError, match=message):
            int4.encode(array, dtype, group_size, scale=scale)


def test_refused_words(backend):
    words, scales = int4.encode(np.ones((4, 128), np.float32), "F32", 64)
    for bad_words, bad_scales, message in (
        (words.view(np.uint32), scales, "int32 matrix"),
        (words[:, :7].copy(), scales, "multiple of 64"),
        (words, scales[:, :1].copy(), r"need scales \(4, 2\)"),
        (words, scales.astype(np.float64), "uint16, float16 or float32"),
        (np.asfortranarray(words), scales, "C-contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            int4.decode(bad_words, bad_scales, 64)
