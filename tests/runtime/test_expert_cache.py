"""The cache of a layer over slots that are late and poisoned: what is used is what was asked for, whatever comes."""

import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tqcli.errors import InputError
from tqcli.runtime.transformers.expert_cache import ExpertCache, in_turn
from tqcli.runtime.transformers.expert_cache_policy import in_groups
from tqcli.runtime.transformers.expert_cache_slots import host_slots

POISON = -1


class LateSlots:
    """A copy is complete when it is waited for; until then the slot holds poison. What is read may not be copied to."""

    device = torch.device("cpu")
    expert_bytes = 10

    def __init__(self, slots: int, failing: Sequence[int] = ()) -> None:
        self.content = [POISON] * slots
        self.coming: dict[int, int] = {}
        self.reading: set[int] = set()
        self.copies: list[tuple[int, int, int]] = []
        self.failing = failing

    def copy(self, slot: int, expert: int) -> None:
        assert slot not in self.reading, "what is being read is overwritten"
        self.copies.append((slot, self.coming.pop(slot, self.content[slot]), expert))
        self.content[slot] = POISON
        if len(self.copies) in self.failing:
            raise MemoryError
        self.coming[slot] = expert

    def wait(self, slot: int) -> None:
        self.content[slot] = self.coming.pop(slot, self.content[slot])
        self.reading.add(slot)

    def read(self, slot: int) -> list[Tensor]:
        assert slot in self.reading
        return [torch.tensor(self.content[slot])]

    def release(self, slot: int) -> None:
        self.reading.remove(slot)


@st.composite
def routed(draw):
    """Slots, and steps: for each token as many different experts as top-k says."""
    experts = draw(st.integers(1, 12))
    slots, chosen = draw(st.integers(1, experts)), draw(st.integers(1, experts))
    token = st.permutations(range(experts)).map(lambda order: order[:chosen])
    return slots, draw(st.lists(st.lists(token, max_size=4), max_size=12))


def distinct(tokens: list[list[int]]) -> list[int]:
    return sorted({expert for token in tokens for expert in token})


@given(routed())
def test_any_steps(case):
    slots, steps = case
    late = LateSlots(slots)
    cache = ExpertCache(late, slots)
    for tokens in steps:
        step, begun = distinct(tokens), len(late.copies)
        used = []
        for expert in cache.in_turn(step):
            assert int(cache.read(expert)[0]) == expert
            used.append(expert)
        assert used == step
        assert not late.reading
        # Of the step nothing goes while it fits, and never what the same group asks for.
        for _, gone, comes in late.copies[begun:]:
            group = next(group for group in in_groups(step, slots) if comes in group)
            assert gone not in (group if len(step) > slots else step)
    counts = cache.counts
    assert counts.hits + counts.misses == sum(len(distinct(tokens)) for tokens in steps)
    assert counts.misses == len(late.copies)
    assert counts.evictions == sum(gone != POISON for _, gone, _ in late.copies)
    assert counts.bytes_copied == 10 * counts.misses
    assert {slot for slot, _, _ in late.copies} <= set(range(slots))
    # Copied again is only what had to go.
    assert counts.misses - counts.evictions <= slots


@given(routed(), st.sets(st.integers(1, 20)))
def test_copies_that_fail(case, failing):
    """The step ends with the error; no later one uses what did not arrive."""
    slots, steps = case
    late = LateSlots(slots, failing)
    cache = ExpertCache(late, slots)
    failed = 0
    for tokens in steps:
        try:
            for expert in cache.in_turn(distinct(tokens)):
                assert int(cache.read(expert)[0]) == expert
        except MemoryError:
            failed += 1
    assert failed == sum(number <= len(late.copies) for number in failing)


@given(routed(), st.integers(0, 40))
def test_a_step_that_is_interrupted_anywhere(case, when):
    """By Ctrl-C, say: at any call that the cache makes, before or after it is done."""
    slots, steps = case
    late = LateSlots(slots)
    cache = ExpertCache(late, slots)
    left = when

    def interrupting(method):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            result = method(*arguments)
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return result

        return call

    late.copy, late.wait = interrupting(late.copy), interrupting(late.wait)
    place = cache._residents.place
    cache._residents.place = interrupting(place)
    for tokens in steps:
        try:
            for expert in cache.in_turn(distinct(tokens)):
                assert int(cache.read(expert)[0]) == expert
        except KeyboardInterrupt:
            # What was computed is thrown away; it may be overwritten.
            late.reading.clear()


@given(routed(), st.data())
def test_steps_that_are_left_in_the_middle(case, data):
    slots, steps = case
    cache = ExpertCache(LateSlots(slots), slots)
    for tokens in steps:
        step = distinct(tokens)
        until = data.draw(st.sampled_from([None, *step]))
        for expert in cache.in_turn(step):
            assert int(cache.read(expert)[0]) == expert
            if expert == until:
                break


def test_whose_turn_it_is_not():
    cache = ExpertCache(LateSlots(3), 3)
    for _ in cache.in_turn([1, 2]):
        pass
    with pytest.raises(InputError, match="in turn"):
        cache.read(2)
    for _ in cache.in_turn([1, 2]):
        with pytest.raises(InputError, match="in turn"):
            cache.read(0)


def test_hits_by_hand():
    cache = ExpertCache(LateSlots(4), 4)
    for step in ([0, 1], [1, 2], [0, 3], [4, 5], [0, 1], [0, 1, 2, 3, 4, 5]):
        list(cache.in_turn(step))
    # 4 and 5 put out 1 and 2; 1 then put out 3; of the last six, 0, 1, 4 and 5 are there, and 4 and 5 make room in the
    # first group, as they come last.
    assert cache.counts.hits == 0 + 1 + 1 + 0 + 1 + 2
    assert cache.counts.misses == 2 + 1 + 1 + 2 + 1 + 4
    assert cache.counts.hit_rate == pytest.approx(5 / 16)


def test_threads_take_turns():
    cache = ExpertCache(LateSlots(1), 1)
    first = cache.in_turn([0])
    next(first)
    seen = []

    def other() -> None:
        seen.extend(int(cache.read(expert)[0]) for expert in cache.in_turn([1]))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(0.2)
    assert seen == []
    assert int(cache.read(0)[0]) == 0
    assert list(first) == []
    thread.join(10)
    assert seen == [1]


def test_slots_in_host_memory():
    host = [torch.arange(24, dtype=torch.uint8).view(6, 4), torch.arange(6.0).view(6, 1)]
    slots = host_slots(host, 2)
    assert (slots.device.type, slots.expert_bytes) == ("cpu", 8)
    slots.copy(1, 5)
    assert [one.tolist() for one in slots.read(1)] == [[20, 21, 22, 23], [5.0]]


def test_weights_without_a_cache():
    assert list(in_turn(torch.zeros(3, 2, 2), [0, 2])) == [0, 2]
