"""`tq convert --budget`: what was asked for, and which bits were chosen, as a person sees it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqcli.cli.options import parse_size
from tqcli.cli.out import Out, size
from tqcli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tqcli.budget.candidates import Group
    from tqcli.budget.choose import Choice, Costs
    from tqcli.budget.sampling import Errors
    from tqcli.job import Job
    from tqcli.plan import Plan


@dataclass(frozen=True)
class WantedSize:
    """Bytes of all weight files, or bits for each weight; text: to calibrate on, None for the weights alone."""

    file_bytes: int | None
    bits_per_weight: float | None
    text: Path | None


def wanted_size(budget: str | None, bits_per_weight: float | None, calibrate: Path | None) -> WantedSize | None:
    """None where no size is asked for. Raises InputError for flags that do not go together."""
    if budget is not None and bits_per_weight is not None:
        raise InputError("`--budget` cannot go with `--bits-per-weight`", why="both say how large the output is")
    if budget is None and bits_per_weight is None:
        if calibrate is not None:
            raise InputError("`--calibrate` chooses nothing by itself", fix="`--budget SIZE` beside it")
        return None
    return WantedSize(None if budget is None else parse_size(budget), bits_per_weight, calibrate)


def choose_bits(out: Out, plan: "Plan", job: "Job", wanted: WantedSize, workers: int) -> "Choice":
    """Measure and choose. Raises InputError where nothing fits, MachineError where the kernels do not work here."""
    from tqcli.budget.choose import Budget, choose
    from tqcli.convert import kernels

    kernels()
    costs = None
    if wanted.text is not None:
        out.note(f"note: the original runs over `{wanted.text}` once for each layer and group of roles")
        costs = _calibrated(plan, job, wanted.text, workers)
    budget = Budget(wanted.file_bytes, wanted.bits_per_weight)
    return choose(plan, budget, shard_bytes=job.shard_bytes, workers=workers, costs=costs)


def _calibrated(plan: "Plan", job: "Job", text: Path, workers: int) -> "Costs":
    """Loads the model only when it is known that something can be chosen."""

    def costs(groups: "Sequence[Group]", errors: "Sequence[Errors]") -> list[tuple[float, ...]]:
        from tqcli.budget.calibration import Calibration

        model = Calibration(job.source, plan.architecture, text, workers, revision=job.revision, base=job.base)
        return model.costs(groups, errors)

    return costs


def print_choice(out: Out, choice: "Choice") -> None:
    """Bits of each role, layer by layer, and what is predicted."""
    from tqcli.plan_summary import layer_ranges

    out.line()
    rows = [(" ".join(roles), str(bits), layer_ranges(layers)) for roles, bits, layers in _rows(choice)]
    out.table(("roles", "bits", "layers"), rows, right=(1,))
    out.line()
    out.line(f"chosen for {choice.said}")
    uniform = choice.uniform
    if uniform and uniform.cost:
        change = 100 * (choice.cost / uniform.cost - 1)
        out.line(f"predicted loss {change:+.0f}% against {uniform.bits} bits for all, {size(uniform.nbytes)}")


def choice_data(choice: "Choice") -> dict[str, object]:
    """The same as JSON. Costs are to compare with each other."""
    uniform = choice.uniform
    return {
        "chosen": [{"roles": roles, "bits": bits, "layers": layers} for roles, bits, layers in _rows(choice)],
        "cost": choice.cost,
        "uniform": asdict(uniform) if uniform else None,
    }


def _rows(choice: "Choice") -> list[tuple[tuple[str, ...], int, list[int]]]:
    """Roles, bits, layers."""
    found: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for one in choice.groups:
        layers = found.setdefault(one.group.roles, {}).setdefault(one.candidate.bits, [])
        layers += [] if one.group.layer is None else [one.group.layer]
    return [(roles, bits, widths[bits]) for roles, widths in found.items() for bits in sorted(widths)]
