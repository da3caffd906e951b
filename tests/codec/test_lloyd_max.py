"""The frozen levels, derived again and compared with the golden tables."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tqcli.codec import lloyd_max, turboquant

FROZEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "tq" / "codebooks.json").read_text())


def _density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _below(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _quantile(probability: float) -> float:
    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle) < probability else (low, middle)
    return (low + high) / 2


def _mean_between(low: float, high: float) -> float:
    mass = _below(high) - _below(low) if high < math.inf else _below(-low)
    return (_density(low) - _density(high)) / mass


def _hundred_iterations(count: int) -> list[float]:
    boundaries = [_quantile(i / count) for i in range(1, count)]
    levels: list[float] = []
    for _ in range(100):
        edges = [-math.inf, *boundaries, math.inf]
        levels = [_mean_between(low, high) for low, high in itertools.pairwise(edges)]
        boundaries = [(low + high) / 2 for low, high in itertools.pairwise(levels)]
    return levels


@pytest.mark.parametrize("bits", [3, 4])
def test_derived_again(bits):
    derived = _hundred_iterations(1 << bits)
    positive = lloyd_max.POSITIVE_LEVELS[bits]
    np.testing.assert_allclose(derived[len(positive) :], positive, rtol=1e-14)
    np.testing.assert_allclose(derived[: len(positive)], [-level for level in positive[::-1]], rtol=1e-14)


@pytest.mark.parametrize("bits", turboquant.BITS)
@pytest.mark.parametrize("group_size", turboquant.GROUP_SIZES)
def test_equal_to_golden(bits, group_size):
    expected = FROZEN["codebooks"][f"bits{bits}_g{group_size}"]
    levels = lloyd_max.centroids(bits, group_size)
    assert [f"{word:08x}" for word in levels.view(np.uint32)] == expected["centroids_hex"]
    boundaries = lloyd_max.boundaries(levels)
    assert [f"{word:08x}" for word in boundaries.view(np.uint32)] == expected["boundaries_hex"]
