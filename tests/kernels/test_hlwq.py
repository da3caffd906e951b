"""HLWQ kernels: the published bytes, one result on every backend, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import read_file
from tq_kernels import NonFiniteWeight, hlwq, hlwq_reference

from tqcli.codec.hlwq_tables import BITS, TABLES, levels, midpoints

GOLDEN_FILE = Path(__file__).resolve().parents[1] / "golden" / "hlwq" / "hlwq_golden.safetensors"
NUMPY = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I64": np.int64, "I8": np.int8, "BF16": np.uint16}
GOLDEN = {
    name: np.frombuffer(data, NUMPY[dtype]).reshape(shape)
    for name, (dtype, shape, data) in read_file(GOLDEN_FILE).items()
}
MATRICES = ("w_aligned", "w_nonaligned")
DTYPES = ("BF16", "F16", "F32")

KINDS = {
    "normal": lambda values, random: values * 0.02,
    "heavy tails": lambda values, random: random.standard_t(3, values.shape) * 0.02,
    "nearly too long": lambda values, random: values * 1e3,
    "norms are denormal halves": lambda values, random: values * 1e-7,
    "norms are zero": lambda values, random: values * 1e-12,
    "squares are denormal": lambda values, random: values * 3e-23,
    "denormal": lambda values, random: values * 1e-39,
    "sparse": lambda values, random: values * (random.random(values.shape) < 0.02),
    "constant": lambda values, random: np.full_like(values, 0.25),
    "one-sided": lambda values, random: np.abs(values),
    "alternating": lambda values, random: np.where(np.indices(values.shape)[1] % 2, 0.5, -0.5),
    "zero": lambda values, random: np.zeros_like(values),
    "negative zero": lambda values, random: np.where(random.random(values.shape) < 0.5, -0.0, values),
    "spikes": lambda values, random: np.where(random.random(values.shape) < 0.01, -1e3, 1e-3),
}


def encoded(weight, dtype, bits, table="truncated"):
    return hlwq.encode(weight, dtype, midpoints(table, bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("matrix", MATRICES)
def test_the_published_bytes(matrix, bits, backend):
    """No value of these lies so near a midpoint that another order of additions matters: every byte is equal."""
    packed, norms = encoded(GOLDEN[matrix], "F32", bits)
    assert norms.tobytes() == GOLDEN[f"{matrix}.q{bits}__norms"].tobytes()
    assert packed.tobytes() == GOLDEN[f"{matrix}.q{bits}__packed"].tobytes()


@pytest.mark.parametrize("bits", [3, 5])
@pytest.mark.parametrize("matrix", MATRICES)
def test_the_published_weights(matrix, bits, backend):
    """The published decoder rounds to BF16 along another order of additions: one unit of the last place."""
    packed, norms = GOLDEN[f"{matrix}.q{bits}__packed"], GOLDEN[f"{matrix}.q{bits}__norms"]
    decoded = hlwq.decode(packed, norms, norms.shape[1] * 128, levels("truncated", bits))
    theirs = (GOLDEN[f"{matrix}.q{bits}.dequant_bf16_padded"].astype(np.uint32) << 16).view(np.float32)
    unit = 2.0 ** np.floor(np.log2(np.abs(theirs))) * 2.0**-7
    assert (np.abs(decoded - theirs) <= unit * 0.501 + 1e-6 * np.abs(norms.astype(np.float32)).max()).all()


@pytest.mark.parametrize("bits", BITS)
def test_the_published_bit_stream(bits):
    indices, packed = GOLDEN[f"pack{bits}_codes"].reshape(-1), GOLDEN[f"pack{bits}_bytes"]
    assert np.array_equal(hlwq_reference.pack(indices, bits), packed)
    assert np.array_equal(hlwq_reference.unpack(packed, bits, indices.size), indices)


@pytest.mark.parametrize("bits", BITS)
def test_every_kind_of_weight(bits, native, stored_as, monkeypatch):
    random = np.random.default_rng(bits)
    for kind, make in KINDS.items():
        values = make(random.standard_normal((21, 3 * 128 + 24)), random)
        for dtype in DTYPES:
            _compare(stored_as(values, dtype), dtype, bits, "truncated", native, monkeypatch, kind)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 400),
    bits=st.sampled_from(BITS),
    table=st.sampled_from(TABLES),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-6, 0.02, 30.0]),
)
def test_every_shape(rows, columns, bits, table, dtype, scale, native, stored_as, monkeypatch):
    values = np.random.default_rng(rows * columns).standard_t(4, (rows, columns)) * scale
    _compare(stored_as(np.clip(values, -2e3, 2e3), dtype), dtype, bits, table, native, monkeypatch, "")


def _compare(weight, dtype, bits, table, native, monkeypatch, kind):
    monkeypatch.setenv("TQ_KERNELS", "reference")
    packed, norms = encoded(weight, dtype, bits, table)
    decoded = hlwq.decode(packed, norms, weight.shape[1], levels(table, bits))
    monkeypatch.setenv("TQ_KERNELS", native)
    native_packed, native_norms = encoded(weight, dtype, bits, table)
    assert native_packed.tobytes() == packed.tobytes(), (kind, dtype)
    assert native_norms.tobytes() == norms.tobytes(), (kind, dtype)
    again = hlwq.decode(packed, norms, weight.shape[1], levels(table, bits))
    assert again.shape == decoded.shape == weight.shape
    assert again.tobytes() == decoded.tobytes(), (kind, dtype)


def _hadamard():
    numbers = np.arange(128, dtype=np.uint8)
    odd = np.unpackbits((numbers[:, None] & numbers)[..., None], axis=-1).sum(axis=-1) % 2
    return (np.where(odd, -1.0, 1.0) / np.sqrt(128)).astype(np.float32)


def test_equal_to_the_matrix_form(stored_as):
    """The definition, as a product with a matrix: other additions, so other indices, but at midpoints only."""
    weight = np.random.default_rng(7).standard_normal((512, 1024)).astype(np.float32) * 0.02
    rotated = weight.reshape(512, 8, 128) @ _hadamard()
    norms = np.maximum(np.linalg.norm(rotated, axis=2, keepdims=True), 1e-10)
    z = rotated / norms * np.float32(np.sqrt(128))
    between = midpoints("truncated", 5)
    theirs = np.searchsorted(between, z)
    packed, stored_norms = encoded(weight, "F32", 5)
    ours = hlwq_reference.unpack(packed, 5, weight.size).reshape(z.shape).astype(np.int64)
    different = ours != theirs
    assert different.sum() <= 20  # of 524288
    assert (np.abs(ours - theirs) <= 1).all()
    crossed = between[np.minimum(ours, theirs)[different]]
    assert np.allclose(z[different], crossed, rtol=0, atol=2e-6)
    assert np.abs(stored_norms.view(np.int16) - norms[..., 0].astype(np.float16).view(np.int16)).max() <= 1


@pytest.mark.parametrize("bits", BITS)
def test_the_nearest_level_is_taken(bits, backend):
    values = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)
    table = levels("lloyd-max", bits)
    packed, _ = encoded(values, "F32", bits, "lloyd-max")
    indices = hlwq_reference.unpack(packed, bits, values.size)
    z, _ = hlwq_reference.normalised(values, "F32")
    distance = np.abs(z.reshape(-1, 1).astype(np.float64) - table)
    assert (distance[np.arange(values.size), indices] <= distance.min(axis=1) + 1e-6).all()


def test_a_value_at_a_midpoint_takes_the_lower_index(backend):
    """A unit impulse rotates to ones and minus ones exactly; the first row of the transform is all ones."""
    weight = np.zeros((2, 128), np.float32)
    weight[0, 0] = weight[1, 1] = 3.0
    packed, norms = hlwq.encode(weight, "F32", np.array([-1, 0, 1], np.float32))
    indices = hlwq_reference.unpack(packed, 2, 256).reshape(2, 128)
    assert norms.tolist() == [[3.0], [3.0]]
    assert (indices[0] == 2).all()  # 1 is not above the midpoint 1
    assert np.array_equal(indices[1], np.where(np.arange(128) % 2, 0, 2))  # nor -1 above the midpoint -1


def test_zeros(backend):
    packed, norms = encoded(np.zeros((3, 128), np.float32), "F32", 5)
    assert (hlwq_reference.unpack(packed, 5, 384) == 15).all()
    assert not norms.any()
    assert not hlwq.decode(packed, norms, 128, levels("truncated", 5)).any()


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_names_its_row(special, backend):
    values = np.random.default_rng(1).standard_normal((50, 200)).astype(np.float32)
    values[33, 199] = special
    values[41, 0] = special
    with pytest.raises(NonFiniteWeight) as raised:
        encoded(values, "F32", 5)
    assert raised.value.row == 33
    assert isinstance(raised.value, hlwq.NormTooLarge) == (special == 3e38)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_not_finite_in_two_bytes(dtype, backend, stored_as):
    weight = stored_as(np.ones((40, 130)), dtype)
    weight.view(np.uint16)[17, 129] = 0x7F80 if dtype == "BF16" else 0x7C00
    with pytest.raises(NonFiniteWeight, match="row 17 holds NaN") as raised:
        encoded(weight, dtype, 4)
    assert not isinstance(raised.value, hlwq.NormTooLarge)


def test_the_largest_norm_of_a_half(backend):
    weight = np.zeros((2, 128), np.float32)
    weight[1, 5] = np.nextafter(np.float32(65520), np.float32(0))
    assert encoded(weight, "F32", 5)[1][1, 0] == 65504
    weight[1, 5] = 65520
    with pytest.raises(hlwq.NormTooLarge, match="row 1 holds a block of 128 weights whose norm"):
        encoded(weight, "F32", 5)


def test_flushed_denormals_of_the_caller_change_nothing(native):
    import torch

    weight = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32) * np.float32(1e-7)
    weight[2:] *= np.float32(1e-32)
    expected = encoded(weight, "F32", 8)
    assert (hlwq_reference.unpack(expected[0], 8, 1024)[512:] == 128).any()  # above zero by a denormal
    assert (expected[1][:2] > 0).all()  # denormal halves
    decoded = hlwq.decode(*expected, 256, levels("truncated", 8))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        flushed = encoded(weight, "F32", 8)
        again = hlwq.decode(*expected, 256, levels("truncated", 8))
    finally:
        torch.set_flush_denormal(False)
    assert flushed[0].tobytes() == expected[0].tobytes()
    assert flushed[1].tobytes() == expected[1].tobytes()
    assert again.tobytes() == decoded.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_need_not_be_aligned(dtype, native, stored_as):
    weight = stored_as(np.random.default_rng(4).standard_normal((9, 300)), dtype)
    packed, norms = encoded(weight, dtype, 5)
    assert encoded(_shifted(weight), dtype, 5)[0].tobytes() == packed.tobytes()
    decoded = hlwq.decode(packed, norms, 300, levels("truncated", 5))
    again = hlwq.decode(_shifted(packed), _shifted(norms), 300, levels("truncated", 5))
    assert again.tobytes() == decoded.tobytes()


def _shifted(array):
    return np.frombuffer(b"?" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


GOOD = np.ones((2, 128), np.float32)


@pytest.mark.parametrize(
    ("weight", "dtype", "table", "message"),
    [
        (GOOD[0], "F32", midpoints("truncated", 5), "expected a matrix"),
        (GOOD[:, :0], "F32", midpoints("truncated", 5), "expected a matrix"),
        (GOOD, "BF16", midpoints("truncated", 5), "must come as"),
        (GOOD, "F64", midpoints("truncated", 5), "must come as"),
        (GOOD[:, ::2], "F32", midpoints("truncated", 5), "C-contiguous"),
        (GOOD, "F32", np.zeros(127, np.float32), "bits one of"),
        (GOOD, "F32", np.zeros(30, np.float32), "bits one of"),
        (GOOD, "F32", np.zeros(31), "float32 vector"),
    ],
)
def test_refused_by_encode(weight, dtype, table, message, backend):
    with pytest.raises(ValueError, match=message):
        hlwq.encode(weight, dtype, table)


@pytest.mark.parametrize(
    ("packed", "norms", "columns", "message"),
    [
        (np.zeros(160, np.uint8), np.zeros((2, 1), np.float16), 129, "129 columns need norms"),
        (np.zeros(160, np.uint8), np.zeros(2, np.float16), 128, "128 columns need norms"),
        (np.zeros(160, np.uint8), np.zeros((2, 0), np.float16), 0, "0 columns"),
        (np.zeros(161, np.uint8), np.zeros((2, 1), np.float16), 128, "are not 161 bytes"),
        (np.zeros(160, np.int8), np.zeros((2, 1), np.float16), 128, "must be uint8"),
        (np.zeros(160, np.uint8), np.zeros((2, 1), np.float32), 128, "float16"),
        (np.zeros(320, np.uint8)[::2], np.zeros((2, 1), np.float16), 128, "C-contiguous"),
    ],
)
def test_refused_by_decode(packed, norms, columns, message, backend):
    with pytest.raises(ValueError, match=message):
        hlwq.decode(packed, norms, columns, levels("truncated", 5))
