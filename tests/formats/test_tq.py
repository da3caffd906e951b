"""The native format as a format: names, shapes and bytes; rows on their own; its golden bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.checkpoints import read_file, to_bytes
from tq_kernels.types import NonFiniteWeight

from tqcli.formats.tq import Tq

GOLDEN = Path(__file__).parents[1] / "golden" / "tq"


def weight(rows: int, columns: int, dtype: str = "BF16", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02
    kind = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[dtype]
    return np.frombuffer(to_bytes(values, dtype), kind).reshape(rows, columns)


def test_defaults():
    assert Tq(bits=3).config() == {"bits": 3, "group_size": 128, "seed": 42}
    assert Tq(bits=3).scale == "search"
    assert Tq(bits=3).label == "tq3 g128"
    assert Tq(bits=2, group_size=64, seed=7).label == "tq2 g64 seed 7"


@pytest.mark.parametrize("bits", [0, 1, 5, 8, "3", True])
def test_widths_that_there_are_not(bits):
    with pytest.raises(ValidationError):
        Tq(bits=bits)


@pytest.mark.parametrize("keys", [{"group_size": 96}, {"seed": -1}, {"seed": 2**32}, {"seed": 1.0}, {"scale": "max"}])
def test_options_that_there_are_not(keys):
    with pytest.raises(ValidationError):
        Tq(bits=3, **keys)


@given(
    bits=st.sampled_from([2, 3, 4]),
    group_size=st.sampled_from([32, 64, 128, 256]),
    leading=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    columns=st.integers(1, 300),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
    scale=st.sampled_from(["norm", "search"]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_planned_is_what_is_encoded(bits, group_size, leading, columns, dtype, scale):
    tq = Tq(bits=bits, group_size=group_size, scale=scale)
    rows = int(np.prod(leading))
    planned = tq.stored("w", (*leading, columns), "F32")
    codes, norms = tq.encode(weight(rows, columns, dtype), dtype)
    assert [one.name for one in planned] == ["w.tq_packed", "w.tq_norms"]
    assert [(one.shape, one.dtype) for one in planned] == [(codes.shape, "U8"), (norms.shape, "F32")]
    assert [one.nbytes for one in planned] == [codes.nbytes, norms.nbytes]
    decoded = tq.decode((codes, norms), columns)
    assert decoded.shape == (rows, columns)
    assert np.isfinite(decoded).all()
    again = tq.decode((codes.reshape(rows, -1), norms), columns)
    assert again.tobytes() == decoded.tobytes()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("columns", [128, 160])
def test_rows_are_on_their_own(bits, columns):
    tq = Tq(bits=bits)
    whole = weight(33, columns)
    codes, norms = tq.encode(whole, "BF16")
    parts = [tq.encode(np.ascontiguousarray(whole[a:b]), "BF16") for a, b in ((0, 1), (1, 20), (20, 33))]
    assert b"".join(part[0].tobytes() for part in parts) == codes.tobytes()
    assert b"".join(part[1].tobytes() for part in parts) == norms.tobytes()


@pytest.mark.parametrize(("bits", "limit"), [(2, 0.13), (3, 0.038), (4, 0.0105)])
def test_what_a_decode_loses(bits, limit):
    truth = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)
    decoded = Tq(bits=bits).decode(Tq(bits=bits).encode(truth, "F32"), 256)
    assert limit / 2 < ((decoded - truth) ** 2).sum() / (truth**2).sum() < limit


def test_zeros_stay_zeros():
    codes, norms = Tq(bits=3).encode(np.zeros((2, 128), np.float32), "F32")
    assert not norms.any()
    assert not Tq(bits=3).decode((codes, norms), 128).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_row_that_is_not_finite(value):
    values = np.ones((9, 128), np.float32)
    values[7, 100] = value
    with pytest.raises(NonFiniteWeight) as caught:
        Tq(bits=3).encode(values, "F32")
    assert caught.value.row == 7


NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
CASES = json.loads((GOLDEN / "tq_codec_golden.json").read_text())


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_published_bytes(case):
    """Through the format's own interface; the kernels' tests do the same for each backend."""
    tensors = read_file(GOLDEN / "tq_codec_golden.safetensors")
    if case + ".input" not in tensors:
        pytest.skip("shares its input with another case")
    dtype, shape, data = tensors[case + ".input"]
    tq = Tq(bits=CASES[case]["bits"], group_size=CASES[case]["group_size"], scale="norm")
    rows = np.frombuffer(data, NUMPY[dtype]).reshape(-1, shape[-1])
    planned = tq.stored(case, shape, "F32")
    for part, array in zip(planned, tq.encode(rows, dtype), strict=True):
        assert (part.dtype, part.shape, array.tobytes()) == tensors[part.name], part.name
    codes, norms = (np.frombuffer(tensors[part.name][2], kind).reshape(part.shape)
                    for part, kind in zip(planned, (np.uint8, np.float32), strict=True))  # fmt: skip
    assert tq.decode((codes, norms), shape[-1]).tobytes() == tensors[case + ".decoded"][2]
