"""Which table a file was made with is told from a few rows of the weight behind it."""

from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import read_file
from tq_kernels.hlwq_reference import unpack

from tqcli.codec.hlwq_identify import boundaries, contradictions, which_table
from tqcli.codec.hlwq_tables import TABLES, midpoints
from tqcli.formats.hlwq import Hlwq

GOLDEN = read_file(Path(__file__).resolve().parents[1] / "golden" / "hlwq" / "hlwq_golden.safetensors")


def seen(bits, table, rows, columns=200, dtype="F32", seed=0):
    values = np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32) * 0.02
    weight = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values
    packed, _ = Hlwq(bits=bits, table=table).encode(weight, dtype)
    return boundaries(weight, dtype, unpack(packed, bits, packed.size * 8 // bits), bits)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_the_table_is_found(bits, table):
    found = seen(bits, table, rows=300, dtype="BF16")
    assert which_table(found) == table
    assert contradictions(found)[table] == 0
    assert min(count for other, count in contradictions(found).items() if other != table) >= 2
    assert (found.above < found.below).all()


def test_the_golden_file_has_the_truncated_table():
    """Eight rows of another program's file are enough at 5 bits; no width contradicts it."""
    _, shape, data = GOLDEN["w_aligned"]
    weight = np.frombuffer(data, np.float32).reshape(shape)
    indices = unpack(np.frombuffer(GOLDEN["w_aligned.q5__packed"][2], np.uint8), 5, weight.size)
    assert which_table(boundaries(weight, "F32", indices, 5)) == "truncated"
    for bits in (2, 3, 4, 6, 8):
        indices = unpack(np.frombuffer(GOLDEN[f"w_aligned.q{bits}__packed"][2], np.uint8), bits, weight.size)
        assert contradictions(boundaries(weight, "F32", indices, bits))["truncated"] == 0


def test_parts_of_a_file_are_joined():
    parts = [seen(5, "unbounded", rows=6, seed=seed) for seed in range(8)]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.joined(part)
    assert which_table(joined) == "unbounded"
    assert contradictions(joined)["truncated"] >= max(contradictions(part)["truncated"] for part in parts)
    assert (joined.above >= parts[3].above).all()
    assert (joined.below <= parts[3].below).all()


def test_too_few_rows_prove_nothing():
    found = seen(2, "truncated", rows=1)
    assert contradictions(found)["truncated"] == 0
    assert which_table(found) is None


def test_indices_of_another_weight_fit_no_table():
    values = np.random.default_rng(1).standard_normal((50, 128)).astype(np.float32)
    packed, _ = Hlwq().encode(np.ascontiguousarray(values[::-1]), "F32")
    found = boundaries(values, "F32", unpack(packed, 5, values.size), 5)
    assert which_table(found) is None
    assert min(contradictions(found).values()) > 25


def test_an_unknown_table_shows_its_boundaries():
    """Levels that no table of ours has: nothing fits, and the true midpoints lie where they were seen."""
    values = np.random.default_rng(2).standard_normal((400, 128)).astype(np.float32)
    shifted = midpoints("lloyd-max", 3) * np.float32(1.1)
    from tq_kernels import hlwq

    packed, _ = hlwq.encode(values, "F32", shifted)
    found = boundaries(values, "F32", unpack(packed, 3, values.size), 3)
    assert which_table(found) is None
    assert found.contradicted(shifted) == 0
    np.testing.assert_allclose((found.above + found.below) / 2, shifted, atol=0.01)


def test_refused():
    values = np.ones((2, 128), np.float32)
    with pytest.raises(ValueError, match="256 weights with their padding, but 255 indices"):
        boundaries(values, "F32", np.zeros(255, np.uint8), 5)
    with pytest.raises(ValueError, match="index 32 has more than 5 bits"):
        boundaries(values, "F32", np.full(256, 32, np.uint8), 5)
