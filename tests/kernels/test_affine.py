"""MLX's affine codec: every backend equals the reference and MLX's bytes; the search never loses to the range."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import read_file
from tq_kernels import affine
from tq_kernels.types import NonFiniteWeight

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
DTYPES = ("BF16", "F16", "F32")
SCALES = ("minmax", "least-squares")
NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
GOLDEN = Path(__file__).parents[1] / "golden" / "mlx" / "affine.safetensors"
ROWS = 7  # no multiple of any number of lanes

KINDS = {
    "normal": lambda values, random: values * 0.02,
    "heavy tails": lambda values, random: random.standard_t(2, values.shape) * 0.02,
    "large": lambda values, random: values * 1e4,
    "too large for squares": lambda values, random: values * 1e25,
    "nearly too large": lambda values, random: np.clip(values, -1, 1) * 1.6e38,
    "faint": lambda values, random: values * 1e-7,
    "squares are zero": lambda values, random: values * 1e-30,
    "denormal": lambda values, random: values * 1e-40,
    "sparse": lambda values, random: values * (random.random(values.shape) < 0.02),
    "one-sided": lambda values, random: np.abs(values) + 1000,
    "negative": lambda values, random: -np.abs(values),
    "constant": lambda values, random: np.full_like(values, 0.3),
    "zero": lambda values, random: np.zeros_like(values),
    "negative zero": lambda values, random: np.where(random.random(values.shape) < 0.5, -0.0, values),
    "few levels": lambda values, random: np.round(values),
    "halves of codes": lambda values, random: random.integers(0, 31, values.shape) / 2,
    "many magnitudes": lambda values, random: np.clip(
        values * np.exp(random.standard_normal(values.shape) * 20), -9, 9
    ),
    "spikes": lambda values, random: np.where(random.random(values.shape) < 0.01, -1e3, 1e-3),
}


def _all_bytes(weight, dtype, bits, group_size, scale):
    stored = affine.encode(weight, dtype, bits=bits, group_size=group_size, scale=scale)
    decoded = affine.decode(*stored, bits=bits, group_size=group_size)
    return [array.tobytes() for array in (*stored, decoded)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_every_kind_of_weight(bits, group_size, native, stored_as, monkeypatch):
    random = np.random.default_rng(bits * group_size)
    for kind, make in KINDS.items():
        values = make(random.standard_normal((ROWS, 3 * group_size)), random)
        for dtype in DTYPES:
            for scale in SCALES:
                case = (stored_as(values, dtype), dtype, bits, group_size, scale)
                monkeypatch.setenv("TQ_KERNELS", "reference")
                expected = _all_bytes(*case)
                monkeypatch.setenv("TQ_KERNELS", native)
                assert _all_bytes(*case) == expected, (kind, dtype, scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_of_mlx(dtype, backend):
    tensors = read_file(GOLDEN)
    _, shape, data = tensors[f"{dtype}.weight"]
    weight = np.frombuffer(data, NUMPY[dtype]).reshape(shape)
    for bits in BITS:
        for group_size in GROUP_SIZES:
            stored = affine.encode(weight, dtype, bits=bits, group_size=group_size, scale="minmax")
            for part, array in zip(("weight", "scales", "biases"), stored, strict=True):
                expected = tensors[f"{dtype}.{bits}.{group_size}.{part}"]
                assert (array.shape, array.tobytes()) == expected[1:], (bits, group_size, part)


def _wide(array, dtype):
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


any_case = st.fixed_dictionaries(
    {
        "bits": st.sampled_from(BITS),
        "group_size": st.sampled_from(GROUP_SIZES),
        "rows": st.integers(0, 40),
        "groups": st.integers(1, 5),
        "dtype": st.sampled_from(DTYPES),
        "kind": st.sampled_from(sorted(KINDS)),
        "seed": st.integers(0, 2**32 - 1),
    }
)
thorough = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def _weight(case, stored_as):
    random = np.random.default_rng(case["seed"])
    values = random.standard_normal((case["rows"], case["groups"] * case["group_size"]))
    return stored_as(KINDS[case["kind"]](values, random), case["dtype"])


@thorough
@given(case=any_case)
def test_no_group_is_worse_than_by_its_range_with_codes_against_what_is_stored(case, native, stored_as):
    weight = _weight(case, stored_as)
    options = {"bits": case["bits"], "group_size": case["group_size"]}
    truth = _wide(weight, case["dtype"]).reshape(-1, case["group_size"])
    words, scales, biases = affine.encode(weight, case["dtype"], scale="least-squares", **options)
    decoded = affine.decode(words, scales, biases, **options).astype(np.float64).reshape(truth.shape)
    _, range_scales, range_biases = affine.encode(weight, case["dtype"], scale="minmax", **options)
    scale, bias = (_wide(array, case["dtype"]).reshape(-1, 1) for array in (range_scales, range_biases))
    codes = np.clip(np.rint((truth - bias) / scale), 0, 2 ** case["bits"] - 1)
    errors = ((decoded - truth) ** 2).sum(1)
    limits = ((codes * scale + bias - truth) ** 2).sum(1)
    # float32 sums decide, to about seven digits of the error and of the weights themselves.
    slack = 1e-10 * (truth**2).sum(1)
    comparable = (np.abs(truth).max(1) < 1e18) & (np.abs(truth).max(1) > 1e-15)
    assert (errors <= limits * (1 + 1e-4) + slack)[comparable].all()


@thorough
@given(case=any_case, scale=st.sampled_from(SCALES))
def test_codes_are_the_nearest_to_what_is_stored(case, scale, native, stored_as):
    """Within half a scale inside the range; in float32 the scale is stored as it was computed."""
    weight = _weight({**case, "kind": "normal", "dtype": "F32"}, stored_as)
    options = {"bits": case["bits"], "group_size": case["group_size"]}
    words, scales, biases = affine.encode(weight, "F32", scale=scale, **options)
    decoded = affine.decode(words, scales, biases, **options)
    largest = 2 ** case["bits"] - 1
    step = np.repeat(np.abs(scales), case["group_size"], axis=1)
    first, last = (np.repeat(edge, case["group_size"], axis=1) for edge in (biases, biases + largest * scales))
    inside = (weight >= np.minimum(first, last)) & (weight <= np.maximum(first, last))
    assert (np.abs(decoded - weight) <= step * 0.501)[inside].all()


@thorough
@given(case=any_case, cut=st.integers(0, 40), scale=st.sampled_from(SCALES))
def test_neighbours_change_nothing(case, cut, scale, native, stored_as):
    weight = _weight(case, stored_as)
    options = {"bits": case["bits"], "group_size": case["group_size"], "scale": scale}
    whole = affine.encode(weight, case["dtype"], **options)
    parts = [affine.encode(part, case["dtype"], **options) for part in (weight[:cut], weight[cut:])]
    for index, array in enumerate(whole):
        assert np.concatenate([part[index] for part in parts]).tobytes() == array.tobytes()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("special", "dtype"), [(np.nan, "BF16"), (np.inf, "F16"), (-np.inf, "F32"), (3e38, "F32")])
def test_what_is_not_finite_names_its_row(special, dtype, scale, backend, stored_as):
    values = np.random.default_rng(1).standard_normal((50, 192))
    values[33, 191] = special
    values[33, 130] = -3e38 if special == 3e38 else 0
    values[41, 0] = np.nan
    weight = stored_as(np.where(np.isfinite(values), values, 0), dtype)
    not_finite = {"BF16": 0x7FC0, "F16": np.inf, "F32": special}[dtype]
    weight[33, 191] = not_finite
    weight[41, 0] = not_finite
    with pytest.raises(NonFiniteWeight) as raised:
        affine.encode(weight, dtype, bits=4, group_size=64, scale=scale)
    assert raised.value.row == 33


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_need_not_be_aligned(dtype, native, stored_as):
    # Tensors of a mapped file start where the file says.
    weight = stored_as(np.random.default_rng(4).standard_normal((9, 320)), dtype)
    shifted = np.frombuffer(b"?" + weight.tobytes(), weight.dtype, offset=1).reshape(weight.shape)
    assert _all_bytes(shifted, dtype, 3, 64, "least-squares") == _all_bytes(weight, dtype, 3, 64, "least-squares")
    stored = affine.encode(weight, dtype, bits=3, group_size=64, scale="minmax")
    moved = [np.frombuffer(b"?" + a.tobytes(), a.dtype, offset=1).reshape(a.shape) for a in stored]
    expected = affine.decode(*stored, bits=3, group_size=64).tobytes()
    assert affine.decode(*moved, bits=3, group_size=64).tobytes() == expected


def test_refused(backend):
    weight = np.zeros((2, 64), np.float32)
    options = {"bits": 4, "group_size": 64, "scale": "minmax"}
    for keys in ({"bits": 7}, {"group_size": 16}, {"scale": "norm"}):
        with pytest.raises(ValueError, match="must be"):
            affine.encode(weight, "F32", **{**options, **keys})
    for array, message in (
        (weight[:, :63], "64 columns"),
        (weight[0], "matrix"),
        (weight.T, "2"),
        (weight[:, :0], "mat"),
    ):
        with pytest.raises(ValueError, match=message):
            affine.encode(array, "F32", **options)
    with pytest.raises(ValueError, match="must come as uint16"):
        affine.encode(weight, "BF16", **options)
    with pytest.raises(ValueError, match="C-contiguous"):
        affine.encode(np.zeros((2, 128), np.float32)[:, ::2], "F32", **options)


def test_stored_arrays_that_do_not_fit(backend):
    words, scales, biases = affine.encode(np.zeros((2, 64), np.float32), "F32", bits=4, group_size=64, scale="minmax")
    for arrays, message in (
        ((words[:, :7], scales, biases), "need codes of shape"),
        ((words, scales, biases[:1]), "equally large"),
        ((words, scales, biases.astype(np.float16)), "types"),
        ((words.view(np.int32), scales, biases), "types"),
        ((words, scales.astype(np.float64), biases.astype(np.float64)), "types"),
    ):
        with pytest.raises(ValueError, match=message):
            affine.decode(*arrays, bits=4, group_size=64)
