"""Which weights an output folder will have, before it is decided how each is stored.

The layout of a format says it: the same weights under the same names, experts one by one, gate apart from up, a tower
left out. Every tensor of the source is in it, or left out with a reason; this is where that is checked.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tqcli.architectures.base import Role
from tqcli.weights import Weight


@dataclass(frozen=True)
class LeftOut:
    """A weight of the source that the output has no place for."""

    weight: Weight
    why: str


@dataclass(frozen=True)
class Arrangement:
    """The output's weights, in the order of writing. layout: name of the layout that made it.

    alike: roles of which the layout's engines want all weights of a block in one format, besides those that every
    engine joins into one matrix.
    """

    layout: str
    weights: tuple[Weight, ...]
    left_out: tuple[LeftOut, ...] = ()
    alike: tuple[tuple[Role, ...], ...] = ()

    def check(self, originals: Iterable[Weight]) -> None:
        """Raise RuntimeError unless every row of the originals is in the output once, or left out: rows lost without
        a word are a model that answers badly without a word.
        """
        here: dict[int, int] = {}
        for weight in (*self.weights, *(one.weight for one in self.left_out)):
            for run in weight.runs:
                here[id(run.source)] = here.get(id(run.source), 0) + run.rows
        there: dict[int, int] = {}
        for weight in originals:
            for run in weight.runs:
                there[id(run.source)] = there.get(id(run.source), 0) + run.rows
                if here.get(id(run.source), 0) == 0 and run.rows:
                    raise RuntimeError(f"the layout {self.layout} has no place for {weight.name}")
        if here != {source: rows for source, rows in there.items() if source in here} or len(here) != len(there):
            raise RuntimeError(f"the layout {self.layout} does not place every row once")
