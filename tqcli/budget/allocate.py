"""Choose one option for each of several groups, so that bytes stay below a limit and the sum of costs is least.

The multiple-choice knapsack problem, solved by dynamic programming over bytes. More bytes never give a higher sum: the
unit that bytes are counted in does not depend on the limit. Left out: what an option is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A byte of memory for each group and state: 50 MB for 400 groups.
_STATES = 1 << 17


@dataclass(frozen=True)
class Option:
    """What choosing it takes, in bytes, and costs: not negative, in any unit."""

    nbytes: int
    cost: float


@dataclass(frozen=True)
class Allocation:
    """chosen: an index into the options of each group. nbytes, cost: their sums."""

    chosen: tuple[int, ...]
    nbytes: int
    cost: float


class Allocator:
    """Solves one problem for every limit at once.

    Bytes are counted in the greatest common divisor of all differences, which is exact; where that gives too many
    states, in a coarser unit with differences rounded up: a share of groups / 131072 of the range may then stay unused.
    """

    def __init__(self, groups: Sequence[Sequence[Option]], states: int = _STATES) -> None:
        """Raises ValueError where a group has no options."""
        if not all(groups):
            raise ValueError("a group without options")
        self._groups = tuple(tuple(options) for options in groups)
        self.smallest = sum(min(one.nbytes for one in options) for options in self._groups)
        self.largest = sum(max(one.nbytes for one in options) for options in self._groups)
        extras = [[one.nbytes - _least(options) for one in options] for options in self._groups]
        self._unit = _unit([extra for group in extras for extra in group], self.largest - self.smallest, states)
        self._extras = [[-(-extra // self._unit) for extra in group] for group in extras]
        self._choices = self._solve()

    def at(self, limit: int) -> Allocation:
        """The best allocation of at most `limit` bytes. Raises ValueError where the smallest is larger."""
        if limit < self.smallest:
            raise ValueError(f"{limit} bytes, the smallest is {self.smallest}")
        # Rounded up, the largest options may add up to more units than the range has.
        return self._at_state(self._last_state if limit >= self.largest else (limit - self.smallest) // self._unit)

    def below(self, allocation: Allocation) -> Allocation | None:
        """The best allocation that is smaller, in units, than one that was too large; None after the smallest."""
        pairs = zip(self._extras, allocation.chosen, strict=True)
        state = sum(extras[chosen] for extras, chosen in pairs) - 1
        return self._at_state(state) if state >= 0 else None

    def _at_state(self, state: int) -> Allocation:
        """The best allocation that takes at most so many units more than the smallest."""
        chosen: list[int] = []
        for extras, choice in zip(reversed(self._extras), reversed(self._choices), strict=True):
            chosen.append(int(choice[state]))
            state -= extras[chosen[-1]]
        return self._allocation(tuple(reversed(chosen)))

    @property
    def _last_state(self) -> int:
        return sum(max(extras) for extras in self._extras)

    def _solve(self) -> list[NDArray[np.uint8]]:
        """For each group and state: the option to take where that many units are left for it and those before it."""
        best = np.zeros(self._last_state + 1)
        choices = []
        for options, extras in zip(self._groups, self._extras, strict=True):
            found = np.full_like(best, np.inf)
            choice = np.zeros(len(best), np.uint8)
            # The smallest first: of two that cost the same, it is kept.
            for number in sorted(range(len(options)), key=lambda one: (options[one].nbytes, options[one].cost)):
                extra = extras[number]
                shifted = best[: len(best) - extra] + options[number].cost
                better = shifted < found[extra:]
                found[extra:][better] = shifted[better]
                choice[extra:][better] = number
            best = found
            choices.append(choice)
        return choices

    def _allocation(self, chosen: tuple[int, ...]) -> Allocation:
        options = [group[index] for group, index in zip(self._groups, chosen, strict=True)]
        return Allocation(chosen, sum(one.nbytes for one in options), math.fsum(one.cost for one in options))


def _least(options: Sequence[Option]) -> int:
    return min(one.nbytes for one in options)


def _unit(extras: Sequence[int], total: int, states: int) -> int:
    """Bytes of one state, the same for every limit."""
    exact = math.gcd(*extras) or 1
    return exact if total // exact <= states else -(-total // states)
