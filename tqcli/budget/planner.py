"""Plans of one model by recipes that differ in widths alone: what `job.plan_job` does, without reading again."""

from tqcli.layouts.base import find
from tqcli.layouts.originals import restored
from tqcli.plan import Plan, make_plan
from tqcli.readers.find import read
from tqcli.recipe import Recipe


class Planner:
    """Makes plans like one that is there. shard_bytes: as that one was made with."""

    def __init__(self, plan: Plan, shard_bytes: int) -> None:
        """Raises InputError as planning does."""
        self._like = plan
        self._shard_bytes = shard_bytes
        self._layout = find(plan.layout)
        originals = restored(read(plan.source), plan.source, plan.architecture)
        self.arrangement = self._layout.arrange(originals, plan.source)

    def __call__(self, recipe: Recipe) -> Plan:
        """The plan of another recipe, whose formats lie in the same layout."""
        source = self._like.source
        return make_plan(
            source,
            self._like.architecture,
            recipe,
            self.arrangement,
            lambda made: self._layout.lay_out(made, source, self._shard_bytes),
        )
