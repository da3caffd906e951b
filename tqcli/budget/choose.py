"""Choose the widths of a model's weights so that its folder has a given size: from a plan to a plan.

The outcome is a plan of an ordinary recipe. The same source and options give the same recipe, whatever the thread
count. Left out: how that plan is run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqcli.budget.allocate import Allocation, Allocator, Option
from tqcli.budget.candidates import Candidate, Group, find_groups, widths
from tqcli.budget.overrides import with_choice
from tqcli.budget.planner import Planner
from tqcli.budget.sampling import Errors, sample_errors
from tqcli.budget.sensitivity import load_sensitivity, predicted
from tqcli.errors import InputError
from tqcli.plan import Plan
from tqcli.recipe import Keep

# Groups and their errors -> the predicted loss of each candidate of each group.
Costs = Callable[[Sequence[Group], Sequence[Errors]], list[tuple[float, ...]]]


@dataclass(frozen=True)
class Budget:
    """Either file_bytes, of all weight files with their headers, or bits_per_weight, of all weights of the folder."""

    file_bytes: int | None = None
    bits_per_weight: float | None = None

    def __post_init__(self) -> None:
        if (self.file_bytes is None) == (self.bits_per_weight is None):
            raise ValueError("one of both")

    def used(self, plan: Plan) -> int:
        """Bytes of a plan that count."""
        return plan.weight_bytes if self.file_bytes is None else plan.file_bytes

    def limit(self, plan: Plan) -> int:
        """Bytes that may be used."""
        if self.file_bytes is not None:
            return self.file_bytes
        return math.floor((self.bits_per_weight or 0.0) * plan.parameters / 8)

    def told(self, nbytes: int, plan: Plan) -> str:
        """Bytes as this budget was given."""
        if self.file_bytes is not None:
            return f"{nbytes:,} bytes"
        # Up, so that a size that is told is one that fits.
        return f"{math.ceil(8000 * nbytes / plan.parameters) / 1000:.3f} bits per weight"


@dataclass(frozen=True)
class Chosen:
    """What one group got."""

    group: Group
    candidate: Candidate


@dataclass(frozen=True)
class Uniform:
    """The most bits that fit the same limit where all weights of the recipe's own format get as many.

    nbytes: as the limit counts them, but for a few of the headers.
    """

    bits: int
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Choice:
    """plan: of the recipe that was chosen. said: the limit, in words. cost: predicted loss, to compare with others'.

    uniform: None where the limit is below that of the fewest bits for all.
    """

    plan: Plan
    groups: tuple[Chosen, ...]
    said: str
    cost: float
    uniform: Uniform | None


def choose(plan: Plan, budget: Budget, *, shard_bytes: int, workers: int, costs: Costs | None = None) -> Choice:
    """The plan with the least predicted loss that fits the budget, and otherwise like `plan`.

    costs: None predicts from the weights alone. Raises InputError where nothing fits, or the recipe leaves no choice.
    """
    planner = Planner(plan, shard_bytes)
    groups = find_groups(plan, planner.arrangement)
    search = _Search(plan, budget, planner, groups)
    # Before anything is measured: what cannot fit is said at once.
    search.check_possible()
    errors = sample_errors(plan.source.storage, groups, workers)
    if costs is None:
        return search.best(predicted(groups, errors, load_sensitivity(), plan.layers))
    return search.best(costs(groups, errors))


class _Search:
    """The choices for one model and one limit."""

    def __init__(self, plan: Plan, budget: Budget, planner: Planner, groups: tuple[Group, ...]) -> None:
        self._plan = plan
        self._budget = budget
        self._planner = planner
        self._groups = groups
        self._limit = budget.limit(plan)
        self._smallest = budget.used(self._made([_by_size(group)[0] for group in groups]))
        # Bytes of all that has no choice, and of the shortest headers.
        self._fixed = self._smallest - sum(_by_size(group)[0].nbytes for group in groups)

    def check_possible(self) -> None:
        """Raise InputError, with the range, where even the smallest choice is too large."""
        if self._smallest <= self._limit:
            return
        largest = self._budget.used(self._made([_by_size(group)[-1] for group in self._groups]))
        told = (self._budget.told(nbytes, self._plan) for nbytes in (self._limit, self._smallest, largest))
        wanted, low, high = told
        why = f"with this recipe it can have from {low} to {high}"
        raise InputError(f"the model does not fit {wanted}", why=why, fix="more, or a recipe that packs more of it")

    def best(self, costs: Sequence[Sequence[float]]) -> Choice:
        """From the largest choice that could fit down to the first that does: only headers are not known before."""
        allocator = Allocator([_options(*pair) for pair in zip(self._groups, costs, strict=True)])
        found: Allocation | None = allocator.at(max(self._limit - self._fixed, allocator.smallest))
        while found is not None:
            picked = [group.candidates[index] for group, index in zip(self._groups, found.chosen, strict=True)]
            plan = self._made(picked)
            if self._budget.used(plan) <= self._limit:
                chosen = tuple(Chosen(*pair) for pair in zip(self._groups, picked, strict=True))
                return Choice(
                    plan, chosen, self._budget.told(self._limit, self._plan), found.cost, self._uniform(costs)
                )
            found = allocator.below(found)
        raise RuntimeError("the smallest choice fits, and was not found")

    def _made(self, picked: Sequence[Candidate]) -> Plan:
        # Not what the recipe says of itself: its bits are others now.
        formats = " and ".join(self._plan.recipe.formats)
        summary = f"{formats}, bits chosen for {self._budget.told(self._limit, self._plan)}"
        plan = self._planner(with_choice(self._plan.recipe, self._groups, picked, summary))
        for group, candidate in zip(self._groups, picked, strict=True):
            for decision in group.decisions:
                if plan.by_name[decision.weight.name].format != candidate.format:
                    raise RuntimeError(f"{decision.weight.name} is not stored as {candidate.format.label}")
        return plan

    def _uniform(self, costs: Sequence[Sequence[float]]) -> Uniform | None:
        fitting = None
        for bits in widths(self._plan.recipe.stored_as) if not isinstance(self._plan.recipe.stored_as, Keep) else ():
            indices = [_at_width(group, self._plan.recipe.stored_as.format, bits) for group in self._groups]
            nbytes = sum(group.candidates[i].nbytes for group, i in zip(self._groups, indices, strict=True))
            if nbytes + self._fixed <= self._limit:
                cost = math.fsum(cost[index] for cost, index in zip(costs, indices, strict=True))
                fitting = Uniform(bits, nbytes + self._fixed, cost)
        return fitting


def _options(group: Group, costs: Sequence[float]) -> list[Option]:
    return [Option(one.nbytes, cost) for one, cost in zip(group.candidates, costs, strict=True)]


def _by_size(group: Group) -> list[Candidate]:
    return sorted(group.candidates, key=lambda one: one.nbytes)


def _at_width(group: Group, format_name: str, bits: int) -> int:
    """The index of the candidate of that width, or of what the group has now where that is of another format."""
    same = group.present.format == format_name
    wanted = [one.bits == bits if same else one.format == group.present for one in group.candidates]
    return wanted.index(True) if True in wanted else 0
