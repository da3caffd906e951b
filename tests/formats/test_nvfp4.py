"""NVFP4 as a format: the global scale; names, shapes and bytes; golden bytes; what it writes into config.json."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.checkpoints import read_file, to_bytes
from tq_kernels.floats import widen
from tq_kernels.types import NonFiniteWeight

from tqcli.formats.nvfp4 import NvFp4

# Made by compressed-tensors itself: tests/peers/test_llmcompressor_int4.py runs the same program.
GOLDEN = read_file(Path(__file__).parents[1] / "golden" / "float4" / "llmcompressor.safetensors")
NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


def weight(rows: int, columns: int, dtype: str = "BF16", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns))
    return np.frombuffer(to_bytes(values, dtype), NUMPY[dtype]).reshape(rows, columns)


def bound(array: np.ndarray, dtype: str) -> NvFp4:
    return NvFp4().with_absmax(float(np.abs(widen(array, dtype)).max()))


def test_what_it_says_of_itself():
    made = NvFp4()
    assert (made.label, made.block_rows, made.config(), made.scheme_name) == ("nvfp4", 1, {}, "NVFP4A16")
    assert made.scheme()["format"] == "nvfp4-pack-quantized"
    assert (made.scheme()["weights"]["group_size"], made.scheme()["weights"]["strategy"]) == (16, "tensor_group")
    with pytest.raises(ValidationError):
        NvFp4(absmax=1.0)


def test_the_greatest_magnitude_comes_first():
    with pytest.raises(ValueError, match="only after with_absmax"):
        NvFp4().encode(weight(2, 32), "BF16")
    made = NvFp4()
    assert made.with_absmax(2.0) is not made
    assert made.with_absmax(2.0) == made.with_absmax(2.0) != made.with_absmax(3.0)
    with pytest.raises(ValueError, match="only after with_absmax"):
        made.encode(weight(2, 32), "BF16")


@pytest.mark.parametrize("absmax", [-1.0, np.nan, np.inf])
def test_magnitudes_that_there_are_not(absmax):
    with pytest.raises(ValueError, match="finite and not negative"):
        NvFp4().with_absmax(absmax)


def test_names():
    for name in ("model.q_proj.weight", "model.q_proj"):
        codes, scales, scale = NvFp4().stored(name, (6, 128), "F16")
        assert (codes.name, codes.dtype, codes.shape) == ("model.q_proj.weight_packed", "U8", (6, 64))
        assert (scales.name, scales.dtype, scales.shape) == ("model.q_proj.weight_scale", "F8_E4M3", (6, 8))
        assert (scale.name, scale.dtype, scale.shape) == ("model.q_proj.weight_global_scale", "F32", (1,))
        assert (scale.content, scale.block_rows) == (None, 6)


def test_refusals():
    assert NvFp4().refusal((128, 704)) == ""
    assert NvFp4().refusal((128, 24)) == "24 columns are no multiple of 16"
    assert "3 dimensions" in NvFp4().refusal((8, 128, 704))


@given(rows=st.integers(1, 5), groups=st.integers(1, 5), dtype=st.sampled_from(["BF16", "F16", "F32"]))
@settings(max_examples=30, deadline=None)
def test_what_is_planned_is_what_is_encoded(rows, groups, dtype):
    given_weight = weight(rows, 16 * groups, dtype)
    planned = NvFp4().stored("layer.weight", (rows, 16 * groups), dtype)
    arrays = bound(given_weight, dtype).encode(given_weight, dtype)
    assert [part.shape for part in planned] == [array.shape for array in arrays]
    assert [part.nbytes for part in planned] == [array.nbytes for array in arrays]
    assert NvFp4().decode(arrays, 16 * groups).shape == (rows, 16 * groups)


def test_pieces_joined_are_the_whole():
    whole = weight(37, 96)
    made = bound(whole, "BF16")
    codes, scales, scale = made.encode(whole, "BF16")
    pieces = [made.encode(whole[start:stop], "BF16") for start, stop in ((0, 1), (1, 20), (20, 37))]
    assert np.concatenate([piece[0] for piece in pieces]).tobytes() == codes.tobytes()
    assert np.concatenate([piece[1] for piece in pieces]).tobytes() == scales.tobytes()
    assert {piece[2].tobytes() for piece in pieces} == {scale.tobytes()}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_golden_bytes(dtype):
    name = f"{dtype.lower()}.nvfp4"
    _, shape, data = GOLDEN[f"{dtype.lower()}.input"]
    array = np.frombuffer(data, NUMPY[dtype]).reshape(shape)
    arrays = bound(array, dtype).encode(array, dtype)
    for part, found in zip(NvFp4().stored("layer.weight", shape, dtype), arrays, strict=True):
        expected = GOLDEN[f"{name}.{part.name.removeprefix('layer.')}"]
        assert (part.dtype, part.shape, found.tobytes()) == expected
    bits = NvFp4().decode(arrays, shape[1]).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    assert rounded.tobytes() == GOLDEN[f"{name}.decoded"][2]


def test_what_may_be_lost():
    truth = weight(256, 512, "F32", seed=1)
    codes, scales, scale = bound(truth, "F32").encode(truth, "F32")

    def loss(codes, scale):
        return ((NvFp4().decode((codes, scales, scale), 512) - truth) ** 2).sum() / (truth**2).sum()

    assert 0.0085 < loss(codes, scale) < 0.0095
    assert NvFp4().error_limit < loss(np.ascontiguousarray(codes[::-1]), scale)
    assert NvFp4().error_limit < loss(codes, scale * 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_row_that_is_not_finite(value):
    values = np.ones((9, 128), np.float32)
    values[7, 100] = value
    with pytest.raises(NonFiniteWeight) as caught:
        NvFp4().with_absmax(1.0).encode(values, "F32")
    assert caught.value.row == 7


def test_columns_that_the_codes_do_not_have():
    with pytest.raises(ValueError, match="64 columns need 32 bytes a row, got 64"):
        NvFp4().decode(NvFp4().with_absmax(8.0).encode(weight(2, 128), "BF16"), 64)
