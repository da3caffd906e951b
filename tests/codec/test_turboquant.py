"""The constants of a configuration."""

import dataclasses

import numpy as np
import pytest

from tqcli.codec import turboquant


@pytest.mark.parametrize("bits", turboquant.BITS)
@pytest.mark.parametrize("group_size", turboquant.GROUP_SIZES)
def test_tables(bits, group_size):
    tables = turboquant.tables(bits, group_size, 42)
    assert tables is turboquant.tables(bits, group_size, 42)
    assert (tables.bits, tables.group_size) == (bits, group_size)
    assert tables.centroids.shape == (1 << bits,)
    assert tables.boundaries.shape == ((1 << bits) - 1,)
    assert all(not array.flags.writeable for array in tables.arrays())
    assert turboquant.bytes_per_group(bits, group_size) == tables.bytes_per_group == bits * group_size / 8


def test_seeds_differ():
    one, other = turboquant.tables(3, 128, 1), turboquant.tables(3, 128, 2)
    assert not np.array_equal(one.signs_in, other.signs_in)


@pytest.mark.parametrize(("columns", "groups"), [(1, 1), (128, 1), (129, 2), (704, 6), (2112, 17)])
def test_groups(columns, groups):
    assert turboquant.groups(columns, 128) == groups


@pytest.mark.parametrize("bits", [-1, 0, 1, 5, 8])
def test_unknown_bits(bits):
    with pytest.raises(ValueError, match="bits must be one of"):
        turboquant.tables(bits, 128, 42)
    with pytest.raises(ValueError, match="bits must be one of"):
        turboquant.bytes_per_group(bits, 128)


@pytest.mark.parametrize("group_size", [0, 16, 96, 127, 512])
def test_unknown_group_size(group_size):
    with pytest.raises(ValueError, match="group size must be one of"):
        turboquant.tables(3, group_size, 42)
    with pytest.raises(ValueError, match="group size must be one of"):
        turboquant.groups(1000, group_size)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_unknown_seed(seed):
    with pytest.raises(ValueError, match="seed must be from 0"):
        turboquant.tables(3, 128, seed)


def test_no_columns():
    with pytest.raises(ValueError, match="columns must be positive"):
        turboquant.groups(0, 128)


def test_tables_of_the_wrong_kind():
    tables = turboquant.tables(3, 128, 42)
    with pytest.raises(ValueError, match="a table must be float32"):
        dataclasses.replace(tables, centroids=tables.centroids.astype(np.float64))
    with pytest.raises(ValueError, match="a table must be int16"):
        dataclasses.replace(tables, search_boundaries=tables.search_boundaries[:, :2])
