"""INT4 as a format: names, shapes and bytes; pieces on their own; golden bytes; what it writes into config.json."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.checkpoints import read_file, to_bytes
from tq_kernels.types import NonFiniteWeight

from tqcli.formats.int4 import Int4

# Made by compressed-tensors itself: tests/peers/test_llmcompressor_int4.py runs the same program.
GOLDEN = read_file(Path(__file__).parents[1] / "golden" / "int4" / "llmcompressor.safetensors")
NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


def weight(rows: int, columns: int, dtype: str = "BF16", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02
    return np.frombuffer(to_bytes(values, dtype), NUMPY[dtype]).reshape(rows, columns)


def test_defaults():
    assert Int4() == Int4(group_size=64, scale="search")
    assert (Int4().label, Int4().block_rows, Int4().config()) == ("int4 g64", 1, {"group_size": 64})
    assert Int4(group_size=128, scale="absmax").config() == {"group_size": 128}


@pytest.mark.parametrize("keys", [{"group_size": 16}, {"group_size": "64"}, {"scale": "max"}, {"bits": 4}])
def test_options_that_there_are_not(keys):
    with pytest.raises(ValidationError):
        Int4(**keys)


def test_names():
    for name in ("model.q_proj.weight", "model.q_proj"):
        words, scales, shape = Int4().stored(name, (6, 128), "F16")
        assert (words.name, words.dtype, words.shape) == ("model.q_proj.weight_packed", "I32", (6, 16))
        assert (scales.name, scales.dtype, scales.shape) == ("model.q_proj.weight_scale", "F16", (6, 2))
        assert (shape.name, shape.dtype, shape.shape) == ("model.q_proj.weight_shape", "I64", (2,))
        assert shape.content == (6).to_bytes(8, "little") + (128).to_bytes(8, "little")


def test_refusals():
    assert Int4().refusal((128, 704)) == ""
    assert Int4(group_size=128).refusal((2816, 704)) == "704 columns are no multiple of 128"
    assert "3 dimensions" in Int4().refusal((8, 128, 704))
    assert "1 dimension" in Int4().refusal((128,))


@given(
    group_size=st.sampled_from([32, 64, 128]),
    scale=st.sampled_from(["absmax", "search", "signed"]),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
)
@settings(max_examples=40, deadline=None)
def test_what_is_planned_is_what_is_encoded(group_size, scale, rows, groups, dtype):
    made, columns = Int4(group_size=group_size, scale=scale), group_size * groups
    planned = made.stored("layer.weight", (rows, columns), dtype)
    arrays = made.encode(weight(rows, columns, dtype), dtype)
    assert [part.shape for part in planned[:2]] == [array.shape for array in arrays]
    assert [part.nbytes for part in planned[:2]] == [array.nbytes for array in arrays]
    decoded = made.decode(arrays, columns)
    assert (decoded.dtype, decoded.shape) == (np.float32, (rows, columns))


@pytest.mark.parametrize("scale", ["absmax", "search", "signed"])
def test_pieces_joined_are_the_whole(scale):
    whole = weight(37, 192)
    made = Int4(scale=scale)
    pieces = [made.encode(whole[start:stop], "BF16") for start, stop in pairwise([0, 1, 2, 20, 37])]
    for joined, array in zip(zip(*pieces, strict=True), made.encode(whole, "BF16"), strict=True):
        assert np.concatenate(joined).tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_golden_bytes(group_size, dtype):
    name = f"{dtype.lower()}.int4-{group_size}"
    _, shape, data = GOLDEN[f"{dtype.lower()}.input"]
    made = Int4(group_size=group_size, scale="absmax")
    arrays = made.encode(np.frombuffer(data, NUMPY[dtype]).reshape(shape), dtype)
    for part, array in zip(made.stored("layer.weight", shape, dtype), arrays, strict=False):
        expected = GOLDEN[f"{name}.{part.name.removeprefix('layer.')}"]
        assert (part.dtype, part.shape, array.tobytes()) == expected
    if group_size == 64:
        rounded = made.decode(arrays, shape[1])
        expected = np.frombuffer(GOLDEN[f"{name}.decoded"][2], NUMPY[dtype])
        assert as_stored(rounded, dtype).tobytes() == expected.tobytes()


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "BF16":
        return values.astype(NUMPY[dtype])
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def test_what_may_be_lost():
    """The healthy stay below the limit, words of other rows and a number that is one off do not."""
    truth = np.random.default_rng(1).standard_normal((256, 512)).astype(np.float32)
    made = Int4(group_size=128, scale="absmax")
    words, scales = made.encode(truth, "F32")

    def loss(words, scales):
        return ((made.decode((words, scales), 512) - truth) ** 2).sum() / (truth**2).sum()

    assert loss(words, scales) < 0.0135
    assert loss(words, scales) < made.error_limit < loss(np.ascontiguousarray(words[::-1]), scales)
    assert loss(words, scales) < made.error_limit < loss(words ^ np.int32(0x11111111), scales)
    outliers = truth * np.where(np.arange(512) % 100 == 0, 20, 1).astype(np.float32)
    decoded = made.decode(made.encode(outliers, "F32"), 512)
    assert ((decoded - outliers) ** 2).sum() / (outliers**2).sum() < made.error_limit


@pytest.mark.parametrize(("scale", "limit"), [("absmax", 0.0107), ("search", 0.0091), ("signed", 0.0082)])
def test_what_each_rule_loses_on_normal_weights(scale, limit):
    truth = np.random.default_rng(2).standard_normal((256, 512)).astype(np.float32)
    decoded = Int4(scale=scale).decode(Int4(scale=scale).encode(truth, "F32"), 512)
    assert 0.95 * limit < ((decoded - truth) ** 2).sum() / (truth**2).sum() < limit


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**127])
def test_the_row_that_is_refused(value):
    values = np.ones((9, 128), np.float32)
    values[7, 100] = value
    with pytest.raises(NonFiniteWeight) as caught:
        Int4().encode(values, "F32")
    assert caught.value.row == 7


def test_columns_that_the_words_do_not_have():
    with pytest.raises(ValueError, match="64 columns need 8 words a row, got 16"):
        Int4().decode(Int4().encode(weight(2, 128), "BF16"), 64)


def test_config_entry():
    entry = Int4(group_size=32).scheme()
    assert Int4(group_size=32).scheme_name != Int4(group_size=64).scheme_name
    assert Int4(group_size=128).scheme_name == "W4A16"
    assert entry["format"] == "pack-quantized"
    assert entry["weights"]["group_size"] == 32
    assert (entry["weights"]["symmetric"], entry["weights"]["dynamic"], entry["input_activations"]) == (
        True,
        False,
        None,
    )
