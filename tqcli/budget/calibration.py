"""How much each group of a model's weights matters, measured on a text: the original beside the same model with one
group at its fewest bits.

Their divergence over that group's relative squared error is what an error costs there. The fewest bits, because the
divergence of a mixture of experts grows steeply from zero, where routers change their minds, and then evenly, and once
all groups are stored it is the even part that adds up. One run over the text a group. Memory: the model (in float32 up
to four billion weights, else as it is stored), one group of it, and the original's logits, 4 bytes for each token and
word of the vocabulary. Left out: graphics cards; this runs on the processor.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tq_kernels.types import NonFiniteWeight

from tqcli.architectures.base import Architecture, Role
from tqcli.budget.candidates import Group
from tqcli.budget.meter import Meter, read_windows
from tqcli.budget.perturbation import Parameter, matrices, stored_as
from tqcli.budget.sampling import Errors
from tqcli.errors import InputError
from tqcli.runtime.load import load

_FLOAT32_WEIGHTS = 4_000_000_000
# Finer than the measurement, and too coarse for the last bits of floating-point sums to show.
_DIGITS = 3


class Calibration:
    """A model and a text, ready to measure groups with."""

    def __init__(
        self,
        source: str,
        architecture: Architecture,
        text: Path,
        workers: int,
        *,
        revision: str | None = None,
        base: str | None = None,
    ) -> None:
        """source: folder or Hub id. Raises InputError where the model cannot be loaded, or the text be read."""
        model, tokenizer = load(source, revision, dtype="auto", base_model=base)
        model = model.float() if model.num_parameters() <= _FLOAT32_WEIGHTS else model
        self._parameters = matrices(model, architecture)
        self._meter = Meter(model, read_windows(tokenizer, text), workers)

    def costs(self, groups: Sequence[Group], errors: Sequence[Errors]) -> list[tuple[float, ...]]:
        """Predicted KL of each candidate of each group, in nats. errors: relative squared errors of the candidates.

        Groups that the loaded model does not have count as others of the same roles. Raises InputError where it has
        none of them.
        """
        slopes = {number: slope for number, one in enumerate(groups) if (slope := self._slope(one)) is not None}
        if not slopes:
            raise InputError("the loaded model has none of the weights", why="it may be compressed in memory")
        known = [slopes[i] if i in slopes else _like(one, groups, slopes) for i, one in enumerate(groups)]
        return [
            tuple(slope * error for error in _mean(group, found))
            for group, slope, found in zip(groups, known, errors, strict=True)
        ]

    def _slope(self, group: Group) -> float | None:
        """KL for each unit of relative squared error; None where the model does not have the group."""
        chosen = [one for one in self._parameters if _belongs(one, group)]
        if not chosen:
            return None
        coarsest = min(group.candidates, key=lambda one: one.nbytes)
        try:
            with stored_as(chosen, coarsest.format) as error:
                divergence = self._meter()
        except NonFiniteWeight as failure:
            what = f"a weight of {', '.join(group.roles)} in layer {group.layer} is not finite"
            raise InputError(what, why=str(failure), fix="the source is damaged: fetch it again") from failure
        return float(f"{divergence / error:.{_DIGITS}g}") if error else 0.0


def _belongs(parameter: Parameter, group: Group) -> bool:
    role = parameter.role
    return role.layer == group.layer and set(role.roles) <= set(group.roles)


def _like(group: Group, groups: Sequence[Group], slopes: Mapping[int, float]) -> float:
    """The mean of the groups that do the same, or else of all."""
    alike = [slope for number, slope in slopes.items() if groups[number].roles == group.roles]
    return sum(alike or slopes.values()) / len(alike or slopes)


def _mean(group: Group, errors: Errors) -> list[float]:
    """Over all weights of a group, each tensor by its share."""
    sizes: dict[tuple[Role, ...], int] = {}
    for one in group.decisions:
        sizes[one.role.roles] = sizes.get(one.role.roles, 0) + one.weight.parameters
    total = sum(sizes.values())
    return [
        sum(errors[roles][number] * size for roles, size in sizes.items()) / total
        for number in range(len(group.candidates))
    ]
