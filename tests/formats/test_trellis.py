"""The trellis format as a format: names, shapes and bytes; rows on their own; decoded as its page says, by the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.checkpoints import to_bytes
from support.trellis_page import decode_row
from tq_kernels.types import NonFiniteWeight

from tqcli.codec.trellis_codebooks import codebook
from tqcli.formats.native import PAIRS
from tqcli.formats.trellis import CODES, META, Trellis

GOLDEN = Path(__file__).parents[1] / "golden" / "trellis"


def weight(rows: int, columns: int, dtype: str = "BF16", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02
    kind = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[dtype]
    return np.frombuffer(to_bytes(values, dtype), kind).reshape(rows, columns)


def test_defaults():
    trellis = Trellis(bits=3)
    assert trellis.config() == {"bits": 3, "rotation": "hadamard", "seed": 42}
    assert trellis.candidates == 3
    assert trellis.label == "trellis3"
    assert Trellis(bits=2, rotation="none").label == "trellis2 unrotated"
    assert Trellis(bits=4, seed=7).label == "trellis4 seed 7"
    assert PAIRS["trellis"] == (CODES, META)


@pytest.mark.parametrize("bits", [0, 1, 5, 8, "3", True])
def test_widths_that_there_are_not(bits):
    with pytest.raises(ValidationError):
        Trellis(bits=bits)


@pytest.mark.parametrize(
    "keys",
    [{"rotation": "fourier"}, {"seed": -1}, {"seed": 2**32}, {"candidates": 2}, {"codebook": "00" * 255}, {"group": 1}],
)
def test_options_that_there_are_not(keys):
    with pytest.raises(ValidationError):
        Trellis(bits=3, **keys)


@pytest.mark.parametrize("columns", [8, 100, 120, 129])
def test_columns_that_cannot_be_cut_into_groups(columns):
    assert str(columns) in Trellis(bits=3).refusal((4, columns))
    assert Trellis(bits=3).refusal((4, 16 * columns)) == ""


@given(
    bits=st.sampled_from([2, 3, 4]),
    rotation=st.sampled_from(["hadamard", "none"]),
    leading=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    sixteens=st.integers(1, 20),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
    candidates=st.sampled_from([1, 3]),
)
@settings(max_examples=40, deadline=None)
def test_what_is_planned_is_what_is_encoded(bits, rotation, leading, sixteens, dtype, candidates):
    trellis = Trellis(bits=bits, rotation=rotation, candidates=candidates)
    rows, columns = int(np.prod(leading)), 16 * sixteens
    planned = trellis.stored("w", (*leading, columns), "F32")
    codes, meta = trellis.encode(weight(rows, columns, dtype), dtype)
    assert [one.name for one in planned] == ["w.trellis_codes", "w.trellis_meta"]
    assert [(one.shape, one.dtype) for one in planned] == [(codes.shape, "U8"), (meta.shape, "I16")]
    assert [one.nbytes for one in planned] == [codes.nbytes, meta.nbytes]
    decoded = trellis.decode((codes, meta), columns)
    for row in range(rows):
        expected = decode_row(codes[row], meta[row], columns, trellis.levels, rotation, seed=42)
        assert decoded[row].tobytes() == expected.tobytes()


@given(data=st.data(), bits=st.sampled_from([2, 3, 4]), rotation=st.sampled_from(["hadamard", "none"]))
@settings(max_examples=40, deadline=None)
def test_any_bits_decode_as_the_page_says(data, bits, rotation):
    columns = 16 * data.draw(st.integers(1, 20))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    trellis = Trellis(bits=bits, rotation=rotation, seed=data.draw(st.sampled_from([42, 7])))
    codes = random.integers(0, 256, (1, columns * bits // 8), dtype=np.uint8)
    (_, planned) = trellis.stored("w", (1, columns), "F32")
    fields = random.integers(0, 31 << (3 + bits), planned.shape)
    starts = random.integers(0, 1 << (8 - bits), planned.shape)
    meta = (fields | starts << (8 + bits)).astype(np.uint16).view(np.int16)
    expected = decode_row(codes[0], meta[0], columns, trellis.levels, rotation, seed=trellis.seed)
    assert trellis.decode((codes, meta), columns)[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("columns", [128, 368])
def test_rows_are_on_their_own(bits, columns):
    trellis = Trellis(bits=bits)
    whole = weight(33, columns)
    codes, meta = trellis.encode(whole, "BF16")
    parts = [trellis.encode(np.ascontiguousarray(whole[a:b]), "BF16") for a, b in ((0, 1), (1, 20), (20, 33))]
    assert b"".join(part[0].tobytes() for part in parts) == codes.tobytes()
    assert b"".join(part[1].tobytes() for part in parts) == meta.tobytes()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_groups_are_on_their_own(bits):
    """A matrix cut by columns at the borders of groups decodes to the parts of the whole: tensor parallelism."""
    trellis = Trellis(bits=bits)
    codes, meta = trellis.encode(weight(8, 704), "BF16")
    whole = trellis.decode((codes, meta), 704)
    for first, last, group in ((0, 256, 0), (256, 640, 2), (640, 704, 5)):
        bytes_ = np.ascontiguousarray(codes[:, first * bits // 8 : last * bits // 8])
        groups = np.ascontiguousarray(meta[:, group : group + -(-(last - first) // 128)])
        assert trellis.decode((bytes_, groups), last - first).tobytes() == whole[:, first:last].tobytes()


@pytest.mark.parametrize(("bits", "limit"), [(2, 0.0715), (3, 0.0183), (4, 0.00505)])
@pytest.mark.parametrize("rotation", ["hadamard", "none"])
def test_what_a_decode_loses(bits, limit, rotation):
    truth = np.random.default_rng(5).standard_normal((256, 1024)).astype(np.float32)
    trellis = Trellis(bits=bits, rotation=rotation)
    decoded = trellis.decode(trellis.encode(truth, "F32"), 1024)
    assert limit * 0.9 < ((decoded - truth) ** 2).sum() / (truth**2).sum() < limit


def test_zeros_stay_zeros():
    codes, meta = Trellis(bits=3).encode(np.zeros((2, 144), np.float32), "F32")
    assert not meta.any()
    assert not codes.any()
    assert not Trellis(bits=3).decode((codes, meta), 144).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e5])
def test_the_row_that_cannot_be_stored(value):
    values = np.full((9, 128), 0.5, np.float32)
    values[7, 100] = value
    with pytest.raises(NonFiniteWeight) as caught:
        Trellis(bits=3).encode(values, "F32")
    assert caught.value.row == 7


def test_another_codebook_decodes_with_it():
    mirrored = (-codebook(3)).astype(np.int8).tobytes().hex()
    other = Trellis(bits=3, codebook=mirrored)
    stored = Trellis(bits=3).encode(weight(4, 128), "BF16")
    assert (other.decode(stored, 128) == -Trellis(bits=3).decode(stored, 128)).all()


@pytest.mark.parametrize("file", sorted(path.name for path in GOLDEN.glob("*.json")))
def test_golden_bytes(file):
    golden = json.loads((GOLDEN / file).read_text())
    trellis = Trellis.model_validate(golden["format"])
    values = np.array(golden["bf16"], np.uint16)
    codes, meta = trellis.encode(values, "BF16")
    assert codes.tobytes().hex() == golden["codes"]
    assert meta.tobytes().hex() == golden["meta"]
    assert trellis.decode((codes, meta), values.shape[1]).tobytes().hex() == golden["decoded"]
    assert trellis.levels == golden["codebook"]


def test_there_are_golden_bytes():
    assert len(list(GOLDEN.glob("*.json"))) == 6
