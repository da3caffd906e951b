"""What a squared error in each role costs, so that widths can be chosen from the weights alone.

Measured once on trained models by scripts/measure_sensitivity and shipped as configs/role-sensitivity.json: how much
KL divergence one unit of relative squared error in all weights of a role gives, and how much more of it the first layer
gives than the others. Left out: the model at hand (`calibration` measures that one).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqcli.architectures.base import Role
from tqcli.budget.candidates import Group
from tqcli.budget.sampling import Errors
from tqcli.recipe import recipes_folder

FILE_NAME = "role-sensitivity.json"


@dataclass(frozen=True)
class Sensitivity:
    """roles: KL in nats for a relative squared error of 1 in all layers at once. first_layer: times another layer's."""

    roles: Mapping[str, float]
    first_layer: float

    def of(self, role: Role, layer: int | None, layers: int) -> float:
        """Of one layer's weights of that role, in a model of so many layers.

        A role that was not measured counts as the mean of those that were.
        """
        whole = self.roles.get(role, sum(self.roles.values()) / len(self.roles))
        if layer is None:
            return whole
        return whole * (self.first_layer if layer == 0 else 1.0) / (self.first_layer + layers - 1)

    def costs(self, group: Group, errors: Errors, layers: int) -> tuple[float, ...]:
        """Predicted KL of each candidate of a group, in nats: good to compare with, less to quote."""
        weighed = [
            (sum(self.of(role, group.layer, layers) for role in roles), found) for roles, found in errors.items()
        ]
        return tuple(
            sum(weight * found[number] for weight, found in weighed) for number in range(len(group.candidates))
        )


def load_sensitivity(path: Path | None = None) -> Sensitivity:
    """The one that ships with the package, or another file of scripts/measure_sensitivity."""
    text = (path or recipes_folder() / FILE_NAME).read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    roles = {role: float(value) for role, value in data["roles"].items()}
    return Sensitivity(roles, float(data["first_layer"]))


def predicted(
    groups: Sequence[Group], errors: Sequence[Errors], sensitivity: Sensitivity, layers: int
) -> list[tuple[float, ...]]:
    """Predicted KL of each candidate of each group."""
    return [sensitivity.costs(group, found, layers) for group, found in zip(groups, errors, strict=True)]
