"""Every native backend equals the torch reference bit for bit, also where floating point is at its worst."""

import numpy as np
import pytest
import tq_kernels

from tqcli.codec import turboquant

ROWS = 21  # no multiple of any batch


def _wide(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    factors = np.exp(np.clip(random.standard_normal(values.shape) * 20, -80, 40))
    return np.clip(values * factors, -1e17, 1e17)


def _giants_among_denormals(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    # The giants cancel in half of the rotated weights, whose signs then hang on quotients deep among the denormals.
    values = values * 2.0**-129
    values[:, :2] = 2.0**19
    return values


KINDS = {
    "normal": lambda values, random: values * 0.02,
    "heavy tails": lambda values, random: random.standard_t(3, values.shape) * 0.02,
    "long": lambda values, random: values * 1e10,
    "nearly too long": lambda values, random: values * 1e17,
    "faint": lambda values, random: values * 1e-19,
    "squares are denormal": lambda values, random: values * 3e-23,
    "squares are zero": lambda values, random: values * 1e-30,
    "denormal": lambda values, random: values * 1e-39,
    "sparse": lambda values, random: values * (random.random(values.shape) < 0.02),
    "constant": lambda values, random: np.ones_like(values),
    "zero": lambda values, random: np.zeros_like(values),
    "negative zero": lambda values, random: np.where(random.random(values.shape) < 0.5, -0.0, values),
    "many magnitudes": _wide,
    "giants among denormals": _giants_among_denormals,
    "spikes": lambda values, random: np.where(random.random(values.shape) < 0.01, -1e3, 1e-3),
}


@pytest.mark.parametrize("bits", turboquant.BITS)
@pytest.mark.parametrize("group_size", turboquant.GROUP_SIZES)
def test_every_kind_of_weight(bits, group_size, native, stored_as, monkeypatch):
    tables = turboquant.tables(bits, group_size, 42)
    random = np.random.default_rng(bits * group_size)
    for kind, make in KINDS.items():
        values = make(random.standard_normal((ROWS, 3 * group_size + 24)), random)
        for dtype in ("BF16", "F16", "F32"):
            _compare(stored_as(values, dtype), dtype, tables, native, monkeypatch, kind)


def _compare(weight, dtype, tables, native, monkeypatch, kind):
    for scale in ("norm", "search"):
        monkeypatch.setenv("TQ_KERNELS", "reference")
        codes, norms = tq_kernels.encode(weight, dtype, tables, scale=scale)
        decoded = _decoded(codes, norms, weight.shape[1], tables)
        monkeypatch.setenv("TQ_KERNELS", native)
        native_codes, native_norms = tq_kernels.encode(weight, dtype, tables, scale=scale)
        assert np.array_equal(native_codes, codes), (kind, dtype, scale)
        assert np.array_equal(native_norms.view(np.uint32), norms.view(np.uint32)), (kind, dtype, scale)
        assert _decoded(codes, norms, weight.shape[1], tables) == decoded, (kind, dtype, scale)


def _decoded(codes, norms, columns, tables):
    return [tq_kernels.decode(codes, norms, columns, tables, dtype=dtype).tobytes() for dtype in ("BF16", "F16", "F32")]


def test_flushed_denormals_of_the_caller_change_nothing(native, stored_as):
    import torch

    tables = turboquant.tables(3, 128, 42)
    weight = stored_as(np.random.default_rng(0).standard_normal((4, 256)) * 1e-39, "F32")
    expected = tq_kernels.encode(weight, "F32", tables, scale="norm")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        flushed = tq_kernels.encode(weight, "F32", tables, scale="norm", threads=2)
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(flushed[0], expected[0])
    assert np.array_equal(flushed[1], expected[1])
    assert len(np.unique(expected[0])) > 10  # the signs of denormals are there


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("scale", ["norm", "search"])
def test_what_is_not_finite_names_its_row(special, scale, backend, stored_as):
    tables = turboquant.tables(3, 64, 42)
    values = np.random.default_rng(1).standard_normal((50, 200))
    values[33, 199] = special
    values[41, 0] = special
    for threads in (1, 3):
        with pytest.raises(tq_kernels.NonFiniteWeight) as raised:
            tq_kernels.encode(stored_as(values, "F32"), "F32", tables, scale=scale, threads=threads)
        assert raised.value.row == 33


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_not_finite_in_two_bytes(dtype, backend, stored_as):
    tables = turboquant.tables(4, 32, 42)
    weight = stored_as(np.ones((40, 64)), dtype)
    weight.view(np.uint16)[17, 5] = 0x7F80 if dtype == "BF16" else 0x7C00
    with pytest.raises(tq_kernels.NonFiniteWeight) as raised:
        tq_kernels.encode(weight, dtype, tables, scale="norm")
    assert raised.value.row == 17


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_memory_need_not_be_aligned(dtype, native, stored_as):
    # Tensors of a mapped file start where the file says.
    tables = turboquant.tables(3, 128, 42)
    weight = stored_as(np.random.default_rng(4).standard_normal((9, 300)), dtype)
    codes, norms = tq_kernels.encode(weight, dtype, tables, scale="search")
    assert np.array_equal(tq_kernels.encode(_shifted(weight), dtype, tables, scale="search")[0], codes)
    decoded = tq_kernels.decode(codes, norms, 300, tables, dtype=dtype)
    again = tq_kernels.decode(_shifted(codes), _shifted(norms), 300, tables, dtype=dtype)
    assert decoded.tobytes() == again.tobytes()
    assert tq_kernels.first_non_finite(_shifted(weight), dtype) is None


def _shifted(array):
    return np.frombuffer(b"?" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


def test_a_norm_that_is_no_number_spoils_its_own_group_only(native):
    tables = turboquant.tables(3, 128, 42)
    codes, norms = np.zeros((4, 48), np.uint8), np.ones((2, 2), np.float32)
    norms.view(np.uint32)[0, 1] = 0x7FFFFFFF
    for dtype in ("BF16", "F16", "F32"):
        decoded = tq_kernels.decode(codes, norms, 256, tables, dtype=dtype)
        wide = decoded.astype(np.uint32) << 16 if dtype == "BF16" else decoded.astype(np.float32).view(np.uint32)
        broken = np.isnan(wide.view(np.float32))
        assert broken[0, 128:].all()
        assert broken.sum() == 128
