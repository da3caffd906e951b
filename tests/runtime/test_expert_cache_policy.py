"""Who is where and who goes, for any sequence of steps."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqcli.runtime.transformers.expert_cache_policy import Residents, in_groups


@st.composite
def asked(draw):
    """Slots, and steps of different experts in ascending order."""
    experts = draw(st.integers(1, 12))
    slots = draw(st.integers(1, experts))
    step = st.sets(st.integers(0, experts - 1)).map(sorted)
    return slots, draw(st.lists(step, max_size=20))


@given(asked())
def test_any_steps(case):
    slots, steps = case
    residents = Residents(slots)
    inside: dict[int, int] = {}
    used: dict[int, int] = {}
    for number, step in enumerate(steps):
        for group in in_groups(step, slots):
            before = dict(inside)
            loads = residents.place(group)
            # Just what was not there is copied, and each expert once.
            assert [load.expert for load in loads] == [expert for expert in group if expert not in before]
            for load in loads:
                assert 0 <= load.slot < slots
                there = [expert for expert, slot in inside.items() if slot == load.slot]
                assert there == ([] if load.evicted is None else [load.evicted])
                if load.evicted is None:
                    assert len(inside) < slots
                else:
                    assert load.evicted not in group
                    # One of the step goes only where not all of it fits.
                    assert load.evicted not in step or len(step) > slots
                    assert used[load.evicted] == min(used[one] for one in inside if one not in group)
                    del inside[load.evicted]
                inside[load.expert] = load.slot
            assert len(set(inside.values())) == len(inside) <= slots
            assert all(residents.slot(expert) == inside[expert] for expert in group)
            used.update(dict.fromkeys(group, number))


@given(st.lists(st.integers()), st.integers(1, 9))
def test_groups(experts, slots):
    groups = list(in_groups(experts, slots))
    assert list(chain.from_iterable(groups)) == experts
    assert all(1 <= len(group) <= slots for group in groups)
    assert len(groups) == -(-len(experts) // slots)


def test_what_was_used_last_stays():
    residents = Residents(3)
    for expert in (1, 2, 3, 1):
        residents.place([expert])
    assert [load.evicted for load in residents.place([4])] == [2]
    assert [load.evicted for load in residents.place([5, 6])] == [3, 1]


def test_what_is_not_there():
    with pytest.raises(KeyError):
        Residents(2).slot(1)


def test_a_group_that_is_too_large():
    with pytest.raises(ValueError, match="does not fit"):
        Residents(2).place([1, 2, 3])
