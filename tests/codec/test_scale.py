"""The search tables keep the integer sums of a group within 32 bits."""

import numpy as np
import pytest
from tq_kernels.types import SEARCH_UNITS

from tqcli.codec import scale, turboquant


@pytest.mark.parametrize("bits", turboquant.BITS)
def test_the_plain_grid_is_a_candidate(bits):
    assert 1.0 in scale.CANDIDATES[bits]


@pytest.mark.parametrize("bits", turboquant.BITS)
def test_tables(bits):
    levels, boundaries = scale.search_centroids(bits), scale.search_boundaries(bits)
    assert levels.dtype == boundaries.dtype == np.int16
    assert levels.shape == (1 << (bits - 1),)
    assert boundaries.shape == (len(scale.CANDIDATES[bits]), len(levels) - 1)
    assert np.all(np.diff(levels.astype(int)) > 0)
    assert levels[0] > 0
    assert np.all(boundaries > 0)
    assert np.all(np.diff(boundaries.astype(int), axis=1) > 0)


@pytest.mark.parametrize("bits", turboquant.BITS)
def test_sums_stay_within_32_bits(bits):
    # The squares of a group sum to group_size standard deviations, so a level that is chosen for a magnitude of at
    # least its lower boundary costs at most (level / boundary)^2 times that; the lowest level costs its own square.
    levels = scale.search_centroids(bits).astype(float)
    group_size = max(turboquant.GROUP_SIZES)
    for boundaries in scale.search_boundaries(bits).astype(float):
        growth = max((levels[1:] / boundaries) ** 2)
        energy = growth * group_size * (SEARCH_UNITS + 1) ** 2 + group_size * levels[0] ** 2
        assert energy < 2**31
        assert np.sqrt(energy * group_size) * (SEARCH_UNITS + 1) < 2**31
