"""FP8 as a format: names, shapes and bytes; pieces on their own; golden bytes; what it writes into config.json."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.checkpoints import read_file, to_bytes
from tq_kernels.types import NonFiniteWeight

from tqcli.formats.fp8 import Fp8

GOLDEN = read_file(Path(__file__).parents[1] / "golden" / "fp8" / "llmcompressor.safetensors")
WEIGHTS = ["bf16", "f16", "f32", "cut_blocks"]
NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F8_E4M3": np.uint8}


def weight(rows: int, columns: int, dtype: str = "BF16", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02
    return np.frombuffer(to_bytes(values, dtype), NUMPY[dtype]).reshape(rows, columns)


def golden(name: str) -> tuple[str, np.ndarray]:
    dtype, shape, data = GOLDEN[name]
    return dtype, np.frombuffer(data, NUMPY[dtype]).reshape(shape)


def test_defaults():
    assert Fp8() == Fp8(strategy="channel", division="float32")
    assert (Fp8().label, Fp8().block_rows, Fp8().config()) == ("fp8 channel", 1, {"strategy": "channel"})
    block = Fp8(strategy="block", division="weight")
    assert (block.label, block.block_rows, block.config()) == ("fp8 block", 128, {"strategy": "block"})


@pytest.mark.parametrize("keys", [{"strategy": "tensor"}, {"division": "bf16"}, {"bits": 8}, {"format": "fp4"}])
def test_options_that_there_are_not(keys):
    with pytest.raises(ValidationError):
        Fp8(**keys)


def test_names():
    for name in ("model.q_proj.weight", "model.q_proj"):
        codes, scales = Fp8().stored(name, (6, 4), "BF16")
        assert (codes.name, codes.dtype, codes.shape) == ("model.q_proj.weight", "F8_E4M3", (6, 4))
        assert (scales.name, scales.dtype, scales.shape) == ("model.q_proj.weight_scale", "BF16", (6, 1))
    (inner, _) = Fp8().stored("a.weight.b.weight", (6, 4), "BF16")
    assert inner.name == "a.weight.b.weight"


def test_refusals():
    assert Fp8().refusal((128, 704)) == ""
    assert "3 dimensions" in Fp8().refusal((8, 128, 704))
    assert "1 dimension" in Fp8().refusal((128,))


@given(
    strategy=st.sampled_from(["channel", "block"]),
    division=st.sampled_from(["float32", "weight"]),
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_planned_is_what_is_encoded(strategy, division, rows, columns, dtype):
    fp8 = Fp8(strategy=strategy, division=division)
    truth = weight(rows, columns, dtype)
    planned, arrays = fp8.stored("w.weight", (rows, columns), dtype), fp8.encode(truth, dtype)
    for part, array in zip(planned, arrays, strict=True):
        assert (part.shape, part.nbytes, NUMPY[part.dtype]) == (array.shape, array.nbytes, array.dtype)
        assert part.shape[0] == -(-rows // part.block_rows) or part.name == "w.weight"
    decoded = fp8.decode(arrays, columns)
    assert decoded.shape == (rows, columns)
    values = (truth.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else truth.astype(np.float32)
    assert ((decoded - values) ** 2).sum() <= fp8.error_limit * (values**2).sum()


@pytest.mark.parametrize("strategy", ["channel", "block"])
@pytest.mark.parametrize("columns", [128, 200])
def test_pieces_are_on_their_own(strategy, columns):
    fp8 = Fp8(strategy=strategy)
    whole = weight(300, columns)
    cuts = [0, *range(fp8.block_rows, 300, 128), 300]
    parts = [fp8.encode(whole[first:last], "BF16") for first, last in pairwise(cuts)]
    assert len(parts) > 2
    for arrays, joined in zip(fp8.encode(whole, "BF16"), zip(*parts, strict=True), strict=True):
        assert np.concatenate(joined).tobytes() == arrays.tobytes()


@pytest.mark.parametrize("strategy", ["channel", "block"])
@pytest.mark.parametrize(("division", "low", "high"), [("float32", 6.9e-4, 7.06e-4), ("weight", 7.04e-4, 7.2e-4)])
def test_what_a_decode_loses(strategy, division, low, high):
    truth = weight(256, 2048, "BF16", seed=5)
    fp8 = Fp8(strategy=strategy, division=division)
    values = (truth.astype(np.uint32) << 16).view(np.float32)
    error = ((fp8.decode(fp8.encode(truth, "BF16"), 2048) - values) ** 2).sum() / (values**2).sum()
    assert low < error < high < fp8.error_limit


@pytest.mark.parametrize("strategy", ["channel", "block"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_row_that_is_not_finite(strategy, value):
    values = np.ones((300, 200), np.float32)
    values[[207, 290], [190, 3]] = value
    with pytest.raises(NonFiniteWeight) as caught:
        Fp8(strategy=strategy).encode(values, "F32")
    assert caught.value.row == 207


@pytest.mark.parametrize("strategy", ["channel", "block"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_bytes_of_llm_compressor(name, strategy):
    """On CPUs it divides in the weight's dtype."""
    dtype, rows = golden(name)
    fp8 = Fp8(strategy=strategy, division="weight")
    for part, array in zip(fp8.stored(name, rows.shape, dtype), fp8.encode(rows, dtype), strict=True):
        expected = GOLDEN[part.name.replace(name, f"{name}.{strategy}")]
        assert (part.dtype, part.shape, array.tobytes()) == expected, part.name


@pytest.mark.parametrize("strategy", ["channel", "block"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_other_division_changes_neighbours_only(name, strategy):
    dtype, rows = golden(name)
    codes, scales = Fp8(strategy=strategy, division="float32").encode(rows, dtype)
    _, theirs = golden(f"{name}.{strategy}.weight")
    assert scales.tobytes() == GOLDEN[f"{name}.{strategy}.weight_scale"][2]
    assert np.abs(codes.astype(int) - theirs.astype(int)).max() <= 1
    differing = (codes != theirs).mean()
    assert {"BF16": 0.005 < differing < 0.06, "F16": differing < 0.01, "F32": differing == 0}[dtype]


def test_the_schemes_of_compressed_tensors():
    """Key by key what version 0.19.0 writes; tests/peers compares it with the package."""
    unset = {"actorder": None, "observer": None, "observer_kwargs": {}, "scale_dtype": None, "zp_dtype": None}
    float8 = {**unset, "num_bits": 8, "type": "float", "symmetric": True, "block_structure": None, "group_size": None}
    rest = {"targets": ["Linear"], "output_activations": None, "format": "float-quantized"}
    assert Fp8().scheme_name == "FP8_DYNAMIC"
    assert Fp8().scheme() == {
        **rest,
        "weights": {**float8, "strategy": "channel", "dynamic": False},
        "input_activations": {**float8, "strategy": "token", "dynamic": True},
    }
    block = Fp8(strategy="block")
    assert block.scheme_name == "FP8_BLOCK"
    assert block.scheme() == {
        **rest,
        "weights": {**float8, "strategy": "block", "block_structure": [128, 128], "dynamic": False},
        "input_activations": {**float8, "strategy": "group", "group_size": 128, "dynamic": True},
    }
