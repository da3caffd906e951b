"""A plan as rows for a table: which roles, which layers, how many tensors become what, how large, and why."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from tqcli.architectures.base import Role
from tqcli.decision import Decision
from tqcli.plan import Plan


@dataclass(frozen=True)
class PlanRow:
    """Decisions of one kind. `parameters` and the byte counts are sums over `tensors`."""

    roles: tuple[str, ...]
    layers: str
    tensors: int
    becomes: str
    parameters: int
    source_bytes: int
    nbytes: int
    why: str

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk for each weight."""
        return self.nbytes * 8 / self.parameters if self.parameters else 0.0


def plan_rows(plan: Plan) -> list[PlanRow]:
    """Decisions gathered by what they become and why, the largest first."""
    groups: dict[tuple[str, str], list[Decision]] = {}
    for decision in plan.decisions:
        groups.setdefault((decision.label, decision.why), []).append(decision)
    rows = [_row(label, why, decisions) for (label, why), decisions in groups.items()]
    return sorted(rows, key=lambda row: -row.nbytes)


def _row(label: str, why: str, decisions: list[Decision]) -> PlanRow:
    found = {role for decision in decisions for role in decision.role.roles}
    layers = {decision.role.layer for decision in decisions if decision.role.layer is not None}
    return PlanRow(
        roles=tuple(role for role in get_args(Role) if role in found),
        layers=layer_ranges(layers),
        tensors=len(decisions),
        becomes=label,
        parameters=sum(decision.weight.parameters for decision in decisions),
        source_bytes=sum(decision.weight.nbytes for decision in decisions),
        nbytes=sum(decision.nbytes for decision in decisions),
        why=why,
    )


def layer_ranges(layers: Iterable[int]) -> str:
    """{0, 1, 2, 5} -> `0-2 5`; nothing -> `-`."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "-"
