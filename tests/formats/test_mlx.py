"""MLX's affine format as a format: names, shapes and bytes; rows on their own; the bytes of `mx.quantize`."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.checkpoints import read_file, to_bytes
from tq_kernels.types import NonFiniteWeight

from tqcli.formats.mlx import Mlx

GOLDEN = Path(__file__).parents[1] / "golden" / "mlx" / "affine.safetensors"
NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "U32": np.uint32}
BITS = [2, 3, 4, 5, 6, 8]
DTYPES = ["BF16", "F16", "F32"]


def weight(rows: int, columns: int, dtype: str = "BF16", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02
    return np.frombuffer(to_bytes(values, dtype), NUMPY[dtype]).reshape(rows, columns)


def test_defaults():
    assert Mlx(bits=4).config() == {"bits": 4, "group_size": 64}
    assert Mlx(bits=4).scale == "minmax"
    assert Mlx(bits=3, group_size=128).label == "mlx3 g128"
    assert Mlx(bits=3).block_rows == 1


@pytest.mark.parametrize("bits", [0, 1, 7, 16, "4", True])
def test_widths_that_there_are_not(bits):
    with pytest.raises(ValidationError):
        Mlx(bits=bits)


@pytest.mark.parametrize("keys", [{"group_size": 16}, {"group_size": 256}, {"scale": "norm"}, {"seed": 1}])
def test_options_that_there_are_not(keys):
    with pytest.raises(ValidationError):
        Mlx(bits=4, **keys)


def test_refusals():
    assert Mlx(bits=4).refusal((8, 96)) == "96 columns are no multiple of 64"
    assert Mlx(bits=4, group_size=32).refusal((8, 96)) == ""
    assert Mlx(bits=4).refusal((128, 704, 2816)) == ""
    assert Mlx(bits=4).refusal((64,)) == "it is no matrix"


def test_experts_keep_their_dimension():
    names = [
        (one.name, one.dtype, one.shape) for one in Mlx(bits=3).stored("m.up_proj.weight", (128, 704, 2816), "BF16")
    ]
    assert names == [
        ("m.up_proj.weight", "U32", (128, 704, 264)),
        ("m.up_proj.scales", "BF16", (128, 704, 44)),
        ("m.up_proj.biases", "BF16", (128, 704, 44)),
    ]


@given(
    bits=st.sampled_from(BITS),
    group_size=st.sampled_from([32, 64, 128]),
    leading=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    groups=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from(["minmax", "least-squares"]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_planned_is_what_is_encoded(bits, group_size, leading, groups, dtype, scale):
    mlx = Mlx(bits=bits, group_size=group_size, scale=scale)
    rows, columns = int(np.prod(leading)), groups * group_size
    planned = mlx.stored("w.weight", (*leading, columns), dtype)
    arrays = mlx.encode(weight(rows, columns, dtype), dtype)
    assert [one.nbytes for one in planned] == [array.nbytes for array in arrays]
    assert [array.shape for array in arrays] == [(rows, one.shape[-1]) for one in planned]
    assert [array.dtype for array in arrays] == [NUMPY[one.dtype] for one in planned]
    decoded = mlx.decode(arrays, columns)
    assert (decoded.shape, decoded.dtype) == ((rows, columns), np.float32)


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_on_their_own(bits):
    mlx = Mlx(bits=bits, scale="least-squares")
    whole = weight(33, 192)
    arrays = mlx.encode(whole, "BF16")
    parts = [mlx.encode(np.ascontiguousarray(whole[a:b]), "BF16") for a, b in ((0, 1), (1, 20), (20, 33))]
    for index, array in enumerate(arrays):
        assert b"".join(part[index].tobytes() for part in parts) == array.tobytes()


def lost(mlx: Mlx, truth: np.ndarray) -> float:
    decoded = mlx.decode(mlx.encode(truth, "F32"), truth.shape[1])
    return float(((decoded - truth) ** 2).sum() / (truth**2).sum())


@pytest.mark.parametrize(
    ("bits", "minmax", "least_squares"),
    [(2, 0.1555, 0.1026), (3, 0.0363, 0.0272), (4, 0.0083, 0.0067), (5, 0.00196, 0.00164), (6, 4.85e-4, 4.05e-4)],
)
def test_what_a_decode_loses(bits, minmax, least_squares):
    truth = np.random.default_rng(5).standard_normal((128, 1024)).astype(np.float32)
    assert lost(Mlx(bits=bits), truth) == pytest.approx(minmax, rel=0.03)
    assert lost(Mlx(bits=bits, scale="least-squares"), truth) == pytest.approx(least_squares, rel=0.03)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_heavy_tails_stay_below_the_limit_and_a_shifted_row_does_not(bits, group_size):
    mlx = Mlx(bits=bits, group_size=group_size)
    truth = np.random.default_rng(6).standard_t(4, (64, 512)).astype(np.float32)
    assert lost(mlx, truth) < mlx.error_limit
    words, scales, biases = mlx.encode(truth, "F32")
    decoded = mlx.decode((np.roll(words, 1, axis=1), scales, biases), 512)
    assert ((decoded - truth) ** 2).sum() / (truth**2).sum() > mlx.error_limit


@pytest.mark.parametrize("scale", ["minmax", "least-squares"])
def test_zeros_stay_zeros(scale):
    mlx = Mlx(bits=3, scale=scale)
    arrays = mlx.encode(np.zeros((2, 128), np.float32), "F32")
    assert not mlx.decode(arrays, 128).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_row_that_is_not_finite(value):
    values = np.ones((9, 128), np.float32)
    values[7, 100] = value
    with pytest.raises(NonFiniteWeight) as caught:
        Mlx(bits=3).encode(values, "F32")
    assert caught.value.row == 7


def test_columns_that_do_not_fit():
    arrays = Mlx(bits=4).encode(np.zeros((2, 128), np.float32), "F32")
    with pytest.raises(ValueError, match="192 columns need 3 scales"):
        Mlx(bits=4).decode(arrays, 192)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_of_mlx(bits, group_size, dtype):
    """Through the format's own interface; tests/kernels does the same for each backend."""
    tensors = read_file(GOLDEN)
    kind, shape, data = tensors[f"{dtype}.weight"]
    mlx = Mlx(bits=bits, group_size=group_size)
    case = f"{dtype}.{bits}.{group_size}.weight"
    arrays = mlx.encode(np.frombuffer(data, NUMPY[kind]).reshape(shape), dtype)
    for part, array in zip(mlx.stored(case, shape, dtype), arrays, strict=True):
        assert (part.dtype, part.shape, array.tobytes()) == tensors[part.name], part.name
    decoded = mlx.decode(arrays, shape[1])
    if expected := tensors.get(case.replace(".weight", ".decoded")):
        assert decoded.tobytes() == expected[2]
