"""Allocation: as good as trying everything, never over the limit, and never worse with more bytes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqcli.budget.allocate import Allocator, Option

COSTS = st.floats(0, 1e6)
OPTIONS = st.lists(st.builds(Option, st.integers(0, 60), COSTS), min_size=1, max_size=4)
PROBLEMS = st.lists(OPTIONS, min_size=1, max_size=5)


def best_of_all(groups, limit) -> float:
    choices = itertools.product(*groups)
    return min(sum(one.cost for one in c) for c in choices if sum(one.nbytes for one in c) <= limit)


@given(PROBLEMS, st.integers(0, 300))
def test_nothing_that_fits_is_better(groups, limit):
    allocator = Allocator(groups)
    limit = max(limit, allocator.smallest)
    found = allocator.at(limit)
    assert found.nbytes == sum(group[i].nbytes for group, i in zip(groups, found.chosen, strict=True)) <= limit
    assert found.cost == pytest.approx(best_of_all(groups, limit), rel=1e-9, abs=1e-9)


@given(PROBLEMS, st.lists(st.integers(0, 300), min_size=2, max_size=12), st.sampled_from([3, 17, 1 << 17]))
def test_more_bytes_are_never_worse(groups, limits, states):
    """In coarse units too, where the result need not be the best."""
    allocator = Allocator(groups, states)
    allocations = [allocator.at(max(limit, allocator.smallest)) for limit in sorted(limits)]
    for limit, allocation in zip(sorted(limits), allocations, strict=True):
        assert allocation.nbytes <= max(limit, allocator.smallest)
    costs = [one.cost for one in allocations]
    assert all(later <= earlier * (1 + 1e-9) + 1e-9 for earlier, later in itertools.pairwise(costs))


@given(PROBLEMS, st.sampled_from([3, 1 << 17]))
def test_enough_for_everything_gives_the_least_cost(groups, states):
    allocator = Allocator(groups, states)
    wanted = sum(min(one.cost for one in group) for group in groups)
    assert allocator.at(allocator.largest).cost == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(PROBLEMS, st.sampled_from([5, 1 << 17]))
def test_below_goes_down_to_the_smallest(groups, states):
    allocator = Allocator(groups, states)
    found, sizes = allocator.at(allocator.largest), []
    while found is not None:
        sizes.append(found.nbytes)
        found = allocator.below(found)
    assert sizes[-1] == allocator.smallest
    assert states == 5 or all(later < earlier for earlier, later in itertools.pairwise(sizes))


def test_a_coarse_unit_wastes_little():
    """Of 300 groups of odd sizes: less than groups / states of the range."""
    groups = [[Option(1_000_003 * i + 7 * j, 100.0 / (j + 1)) for j in range(3)] for i in range(1, 301)]
    groups = [[Option(one.nbytes * (j + 1), one.cost) for j, one in enumerate(group)] for group in groups]
    allocator = Allocator(groups)
    limit = (allocator.smallest + allocator.largest) // 2
    smallest_step = 1_000_003
    slack = 300 * (allocator.largest - allocator.smallest) // (1 << 17)
    assert limit - allocator.at(limit).nbytes <= slack + smallest_step


def test_of_equal_costs_the_smaller_is_taken():
    found = Allocator([[Option(9, 1.0), Option(3, 1.0), Option(5, 1.0)]]).at(100)
    assert found.chosen == (1,)


def test_no_choice_and_no_room():
    allocator = Allocator([[Option(10, 2.0)], [Option(4, 1.0)]])
    assert allocator.at(14).chosen == (0, 0)
    with pytest.raises(ValueError, match="smallest is 14"):
        allocator.at(13)
    with pytest.raises(ValueError, match="without options"):
        Allocator([[Option(1, 1.0)], []])
