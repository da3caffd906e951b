"""The three frozen tables: equal to golden, derived again, and what makes one of them the best."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import read_file

from tqcli.codec.hlwq_tables import BITS, TABLES, levels, midpoints

GOLDEN = read_file(Path(__file__).resolve().parents[1] / "golden" / "hlwq" / "hlwq_golden.safetensors")


def _density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _above(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2))


def _mean_between(low: float, high: float) -> float:
    """Of a standard normal variable; the tail on the interval's own side keeps the digits."""
    mass = _above(low) - _above(high) if low > 0 else _above(-high) - _above(-low)
    return (_density(low) - _density(high)) / mass


def _hundred_iterations(bits: int, end: float) -> list[float]:
    edges = [float(edge) for edge in np.linspace(-4, 4, (1 << bits) + 1)]
    edges[0], edges[-1] = -end, end
    found: list[float] = []
    for _ in range(100):
        found = [_mean_between(low, high) for low, high in itertools.pairwise(edges)]
        edges[1:-1] = [(low + high) / 2 for low, high in itertools.pairwise(found)]
    return found


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("table", "key"), [("truncated", "hf"), ("unbounded", "utils")])
def test_equal_to_golden(bits, table, key):
    dtype, shape, data = GOLDEN[f"centroids_q{bits}_{key}"]
    assert (dtype, shape) == ("F32", (1 << bits,))
    assert levels(table, bits).tobytes() == data


@pytest.mark.parametrize("bits", BITS)
def test_unbounded_derived_again(bits):
    np.testing.assert_allclose(_hundred_iterations(bits, math.inf), levels("unbounded", bits), rtol=1e-7)


@pytest.mark.parametrize("bits", BITS)
def test_truncated_derived_again(bits):
    """In double precision; single precision loses digits in each of the hundred steps."""
    np.testing.assert_allclose(_hundred_iterations(bits, 4.0), levels("truncated", bits), rtol=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_lloyd_max_is_a_fixed_point(bits):
    """Each level is the mean of its cell, and the cells meet at midpoints: the optimum of a log-concave density."""
    found = [float(level) for level in levels("lloyd-max", bits)]
    edges = [-math.inf, *((low + high) / 2 for low, high in itertools.pairwise(found)), math.inf]
    means = [_mean_between(low, high) for low, high in itertools.pairwise(edges)]
    np.testing.assert_allclose(means, found, atol=3e-7)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("table", TABLES)
def test_shape_of_a_table(bits, table):
    both = levels(table, bits)
    assert both.dtype == np.float32
    assert len(both) == 1 << bits
    assert (np.diff(both) > 0).all()
    assert np.array_equal(both, -both[::-1])
    between = midpoints(table, bits)
    assert between[len(between) // 2] == 0
    assert ((both[:-1] < between) & (between < both[1:])).all()
    assert not both.flags.writeable


def _distortion(table: str, bits: int) -> float:
    """Of a standard normal variable, by its density on a fine grid."""
    x = np.linspace(-9, 9, 400_001)
    nearest = levels(table, bits)[np.searchsorted(midpoints(table, bits), x)]
    return float(((nearest - x) ** 2 * np.exp(-x * x / 2)).sum() * (x[1] - x[0]) / math.sqrt(2 * math.pi))


@pytest.mark.parametrize(
    ("bits", "truncated", "unbounded", "best"),
    [(5, 0.002902, 0.002923, 0.002505), (6, 0.001051, 0.001047, 0.0006442), (8, 8.685e-5, 8.029e-5, 4.119e-5)],
)
def test_what_a_table_loses(bits, truncated, unbounded, best):
    assert _distortion("truncated", bits) == pytest.approx(truncated, rel=1e-3)
    assert _distortion("unbounded", bits) == pytest.approx(unbounded, rel=1e-3)
    assert _distortion("lloyd-max", bits) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize(("table", "bits"), [("uniform", 5), ("truncated", 7), ("truncated", 1)])
def test_unknown(table, bits):
    with pytest.raises(ValueError, match="must be one of"):
        levels(table, bits)
