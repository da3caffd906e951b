"""Which experts of a layer are in which slots, and which goes when another comes: the least recently used.

Numbers only; what is copied, and when, is in `expert_cache`. A step is what one call of a layer asks for. Where that
is more experts than there are slots, it comes in groups. What a group asks for stays until all of it is there; so does
all of a step that is one group.

Left out: guesses of what will be asked for, and frequencies, which have not been seen to hit more often.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """An expert that comes into a slot; evicted: which one was there."""

    slot: int
    expert: int
    evicted: int | None


def in_groups(experts: Sequence[int], slots: int) -> Iterator[Sequence[int]]:
    """In order, at most as many at a time as there are slots."""
    return (experts[start : start + slots] for start in range(0, len(experts), slots))


class Residents:
    """Experts by the time of their last use, the oldest first, each with its slot."""

    def __init__(self, slots: int) -> None:
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._free = list(range(slots))[::-1]

    def slot(self, expert: int) -> int:
        """Where an expert is. KeyError where it is not."""
        return self._slots[expert]

    def place(self, group: Sequence[int]) -> list[Load]:
        """Give every expert of the group a slot, and say which have to be copied there.

        group: different experts, no more than there are slots.
        """
        # What is there becomes the newest first, so that nothing that comes puts it out.
        for expert in group:
            if expert in self._slots:
                self._slots.move_to_end(expert)
        return [self._load(expert, group) for expert in group if expert not in self._slots]

    def _load(self, expert: int, group: Collection[int]) -> Load:
        evicted = None
        if self._free:
            slot = self._free.pop()
        else:
            evicted, slot = self._slots.popitem(last=False)
            if evicted in group:
                raise ValueError(f"a group of {len(group)} experts does not fit in {len(self._slots) + 1} slots")
        self._slots[expert] = slot
        return Load(slot, expert, evicted)
