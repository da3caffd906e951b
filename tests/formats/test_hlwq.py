"""HLWQ as a format: names, shapes and bytes; rows on their own; its golden bytes; its weak spots."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.checkpoints import read_file, to_bytes
from tq_kernels import NonFiniteWeight

from tqcli.formats.hlwq import Hlwq

GOLDEN = read_file(Path(__file__).parents[1] / "golden" / "hlwq" / "hlwq_golden.safetensors")
NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I64": np.int64, "U8": np.uint8}
WIDTHS = [2, 3, 4, 5, 6, 8]
TABLES = ["truncated", "unbounded", "lloyd-max"]


def golden(name: str) -> np.ndarray:
    dtype, shape, data = GOLDEN[name]
    return np.frombuffer(data, NUMPY[dtype]).reshape(shape)


def weight(rows: int, columns: int, dtype: str = "BF16", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02
    return np.frombuffer(to_bytes(values, dtype), NUMPY[dtype]).reshape(rows, columns)


def loss(decoded: np.ndarray, truth: np.ndarray) -> float:
    return float(((decoded - truth) ** 2).sum() / (truth.astype(np.float64) ** 2).sum())


def test_defaults():
    assert Hlwq().config() == {"bits": 5, "block_size": 128, "table": "truncated"}
    assert Hlwq().label == "hlwq5"
    assert Hlwq(bits=3, table="lloyd-max").label == "hlwq3 lloyd-max"
    assert Hlwq().refusal((3, 704)) == ""
    assert Hlwq().block_rows == 1


@pytest.mark.parametrize("keys", [{"bits": 7}, {"bits": 1}, {"bits": "5"}, {"table": "uniform"}, {"block_size": 64}])
def test_options_that_there_are_not(keys):
    with pytest.raises(ValidationError):
        Hlwq(**keys)


@given(
    bits=st.sampled_from(WIDTHS),
    table=st.sampled_from(TABLES),
    leading=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    columns=st.integers(1, 300),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_planned_is_what_is_encoded(bits, table, leading, columns, dtype):
    hlwq = Hlwq(bits=bits, table=table)
    rows = int(np.prod(leading))
    planned = hlwq.stored("w", (*leading, columns), dtype)
    packed, norms = hlwq.encode(weight(rows, columns, dtype), dtype)
    assert [one.name for one in planned] == ["w__packed", "w__norms", "w__meta"]
    assert [(one.shape, one.dtype) for one in planned[:2]] == [(packed.shape, "U8"), (norms.shape, "F16")]
    assert [one.nbytes for one in planned[:2]] == [packed.nbytes, norms.nbytes]
    meta = np.frombuffer(planned[2].content, "<i8")
    assert planned[2].nbytes == meta.nbytes
    assert (planned[2].dtype, planned[2].shape) == ("I64", (5,))
    count = -(-columns // 128)
    assert meta.tolist() == [rows, count, 128, rows * count * 128, columns]
    decoded = hlwq.decode((packed, norms), columns)
    assert decoded.shape == (rows, columns)
    assert np.isfinite(decoded).all()
    again = hlwq.decode((packed.reshape(rows, -1), norms), columns)
    assert again.tobytes() == decoded.tobytes()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("columns", [128, 160])
def test_rows_are_on_their_own(bits, columns):
    hlwq = Hlwq(bits=bits)
    whole = weight(33, columns)
    packed, norms = hlwq.encode(whole, "BF16")
    parts = [hlwq.encode(np.ascontiguousarray(whole[a:b]), "BF16") for a, b in ((0, 1), (1, 20), (20, 33))]
    assert b"".join(part[0].tobytes() for part in parts) == packed.tobytes()
    assert b"".join(part[1].tobytes() for part in parts) == norms.tobytes()


LOSSES = {
    ("truncated", 2): 0.116, ("truncated", 3): 0.0340, ("truncated", 4): 0.00932, ("truncated", 5): 0.00287,
    ("truncated", 6): 0.00104, ("truncated", 8): 8.4e-5, ("unbounded", 5): 0.00290, ("lloyd-max", 5): 0.00245,
    ("lloyd-max", 6): 0.000632, ("lloyd-max", 8): 4.05e-5,
}  # fmt: skip


@pytest.mark.parametrize(("table", "bits"), LOSSES)
def test_what_a_decode_loses(table, bits):
    truth = np.random.default_rng(5).standard_normal((256, 1024)).astype(np.float32)
    hlwq = Hlwq(bits=bits, table=table)
    lost = loss(hlwq.decode(hlwq.encode(truth, "F32"), 1024), truth)
    assert lost == pytest.approx(LOSSES[table, bits], rel=0.02)
    assert lost < hlwq.error_limit < 0.3


def test_the_table_of_the_published_decoder_loses_more():
    truth = np.random.default_rng(6).standard_normal((256, 1024)).astype(np.float32)
    stored = Hlwq().encode(truth, "F32")
    assert loss(Hlwq(table="unbounded").decode(stored, 1024), truth) > 1.04 * loss(Hlwq().decode(stored, 1024), truth)


@pytest.mark.parametrize("matrix", ["w_aligned", "w_nonaligned"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_published_bytes(matrix, bits):
    """Through the format's own interface; the kernels' tests do the same for each backend. Their meta had 4 numbers."""
    rows = golden(matrix)
    name = f"{matrix}.q{bits}"
    packed, norms, meta = Hlwq(bits=bits).stored(name, rows.shape, "F32")
    for part, array in zip((packed, norms), Hlwq(bits=bits).encode(rows, "F32"), strict=True):
        assert (part.dtype, part.shape, array.tobytes()) == GOLDEN[part.name], part.name
    assert meta.content == golden(f"{name}__meta4").tobytes() + rows.shape[1].to_bytes(8, "little")


def test_a_block_along_a_walsh_row_loses_half():
    """The format has no random signs: all of a constant block is one coordinate, and the largest level is 3.42."""
    truth = np.full((2, 128), 0.02, np.float32)
    lost = loss(Hlwq().decode(Hlwq().encode(truth, "F32"), 128), truth)
    assert lost == pytest.approx(0.494, abs=0.005)
    assert lost > Hlwq().error_limit  # verify reports such a weight


def test_zeros_stay_zeros():
    packed, norms = Hlwq().encode(np.zeros((2, 128), np.float32), "F32")
    assert not norms.any()
    assert not Hlwq().decode((packed, norms), 128).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 70000])
def test_the_row_that_has_no_norm(value):
    values = np.ones((9, 128), np.float32)
    values[7, 100] = value
    with pytest.raises(NonFiniteWeight) as caught:
        Hlwq().encode(values, "F32")
    assert caught.value.row == 7
