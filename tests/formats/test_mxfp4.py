"""MXFP4 as a format: names, shapes and bytes; pieces on their own; golden bytes; what it writes into config.json."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.checkpoints import read_file, to_bytes
from tq_kernels.types import NonFiniteWeight

from tqcli.formats.mxfp4 import MxFp4

# Made by compressed-tensors itself: tests/peers/test_llmcompressor_int4.py runs the same program.
GOLDEN = read_file(Path(__file__).parents[1] / "golden" / "float4" / "llmcompressor.safetensors")
NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


def weight(rows: int, columns: int, dtype: str = "BF16", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02
    return np.frombuffer(to_bytes(values, dtype), NUMPY[dtype]).reshape(rows, columns)


def test_what_it_says_of_itself():
    made = MxFp4()
    assert (made.label, made.block_rows, made.config(), made.scheme_name) == ("mxfp4", 1, {}, "MXFP4A16")
    assert made.scheme()["format"] == "mxfp4-pack-quantized"
    assert made.scheme()["weights"]["group_size"] == 32
    with pytest.raises(ValidationError):
        MxFp4(group_size=32)


def test_names():
    for name in ("model.q_proj.weight", "model.q_proj"):
        codes, scales = MxFp4().stored(name, (6, 128), "F16")
        assert (codes.name, codes.dtype, codes.shape) == ("model.q_proj.weight_packed", "U8", (6, 64))
        assert (scales.name, scales.dtype, scales.shape) == ("model.q_proj.weight_scale", "U8", (6, 4))


def test_refusals():
    assert MxFp4().refusal((128, 704)) == ""
    assert MxFp4().refusal((128, 48)) == "48 columns are no multiple of 32"
    assert "3 dimensions" in MxFp4().refusal((8, 128, 704))


@given(rows=st.integers(1, 5), groups=st.integers(1, 5), dtype=st.sampled_from(["BF16", "F16", "F32"]))
@settings(max_examples=30, deadline=None)
def test_what_is_planned_is_what_is_encoded(rows, groups, dtype):
    planned = MxFp4().stored("layer.weight", (rows, 32 * groups), dtype)
    arrays = MxFp4().encode(weight(rows, 32 * groups, dtype), dtype)
    assert [part.shape for part in planned] == [array.shape for array in arrays]
    assert [part.nbytes for part in planned] == [array.nbytes for array in arrays]
    assert MxFp4().decode(arrays, 32 * groups).shape == (rows, 32 * groups)


def test_pieces_joined_are_the_whole():
    whole = weight(37, 96)
    pieces = [MxFp4().encode(whole[start:stop], "BF16") for start, stop in ((0, 1), (1, 20), (20, 37))]
    for joined, array in zip(zip(*pieces, strict=True), MxFp4().encode(whole, "BF16"), strict=True):
        assert np.concatenate(joined).tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_golden_bytes(dtype):
    name = f"{dtype.lower()}.mxfp4"
    _, shape, data = GOLDEN[f"{dtype.lower()}.input"]
    arrays = MxFp4().encode(np.frombuffer(data, NUMPY[dtype]).reshape(shape), dtype)
    for part, array in zip(MxFp4().stored("layer.weight", shape, dtype), arrays, strict=True):
        expected = GOLDEN[f"{name}.{part.name.removeprefix('layer.')}"]
        assert (part.dtype, part.shape, array.tobytes()) == expected
    # The peer decodes to BF16 whatever the source; these numbers all lie in it.
    bits = MxFp4().decode(arrays, shape[1]).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    assert (bits >> 16).astype(np.uint16).tobytes() == GOLDEN[f"{name}.decoded"][2]


def test_what_may_be_lost():
    truth = np.random.default_rng(1).standard_normal((256, 512)).astype(np.float32)
    codes, scales = MxFp4().encode(truth, "F32")

    def loss(codes):
        return ((MxFp4().decode((codes, scales), 512) - truth) ** 2).sum() / (truth**2).sum()

    assert 0.012 < loss(codes) < 0.0132
    assert MxFp4().error_limit < loss(np.ascontiguousarray(codes[::-1]))
    assert MxFp4().error_limit < loss(codes >> 4 | codes << 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.75 * 2.0**127])
def test_the_row_that_is_refused(value):
    values = np.ones((9, 128), np.float32)
    values[7, 100] = value
    with pytest.raises(NonFiniteWeight) as caught:
        MxFp4().encode(values, "F32")
    assert caught.value.row == 7


def test_columns_that_the_codes_do_not_have():
    with pytest.raises(ValueError, match="64 columns need 32 bytes a row, got 64"):
        MxFp4().decode(MxFp4().encode(weight(2, 128), "BF16"), 64)
