"""A plan as a person sees it before anything is written: what each kind of weight becomes, sizes, needs, notes."""

from pathlib import Path
from typing import TYPE_CHECKING

from tqcli.cli.out import Out, count, size

if TYPE_CHECKING:
    from tqcli.checkpoint.reader import Checkpoint
    from tqcli.plan import Plan
    from tqcli.plan_summary import PlanRow

_RANGES_SHOWN = 2


def print_plan(out: Out, plan: "Plan", recipe: str, output: Path | None, memory: int) -> None:
    """output: None in a dry run without a folder. memory: bytes."""
    from tqcli.convert import kernels
    from tqcli.job import disk_needed, free_disk
    from tqcli.plan_summary import plan_rows

    storage = plan.source.storage
    revision = f"   {storage.revision[:12]}" if storage.revision else ""
    model_type = plan.source.config["model_type"]
    out.line(f"model    {storage.label}{revision}   {model_type}   {count(plan.parameters)} weights")
    out.line(f"recipe   {recipe}   {plan.recipe.summary}")
    out.line()
    rows = [
        (
            row.becomes,
            f"{row.bits_per_weight:.2f}",
            size(row.nbytes),
            str(row.tensors),
            _layers(row),
            _roles(row),
        )
        for row in plan_rows(plan)
    ]
    out.table(("becomes", "bits/w", "size", "tensors", "layers", "roles"), rows, right=(1, 2, 3))
    out.line()
    bits = plan.weight_bytes * 8 / plan.parameters if plan.parameters else 0.0
    ratio = plan.source_bytes / plan.weight_bytes if plan.weight_bytes else 0.0
    out.line(
        f"{size(plan.source_bytes)} -> {size(plan.weight_bytes)}   {bits:.2f} bits per weight   {ratio:.2f}x smaller"
    )
    free = f" ({size(free_disk(output))} free)" if output else ""
    backend = kernels()
    out.line(f"needs {size(disk_needed(plan))} of disk{free}, {size(memory)} of memory")
    out.line(f"kernels {backend.name}")
    if backend.name == "reference":
        out.note(f"note: {backend.reason}")
    for name, reason in plan.source.ignored_files:
        out.note(f"note: `{name}` is left out: {reason}")
    if note := base_note(plan.source):
        out.note(note)
    for one in _reasons(plan):
        out.note(f"note: {one}")
    _note_left_out(out, plan)


def base_note(source: "Checkpoint") -> str:
    """How many tensors come from the base model, where one is needed."""
    from tqcli.checkpoint.overlay import Overlay

    storage = source.storage
    if not isinstance(storage, Overlay):
        return ""
    return f"note: {storage.taken} of {len(source.tensors)} tensors are taken from `{storage.base.label}`"


def _reasons(plan: "Plan") -> list[str]:
    """What the layout has no place for: a line a reason."""
    gone: dict[str, list[str]] = {}
    for one in plan.left_out:
        gone.setdefault(one.why, []).append(one.weight.name)
    return [f"{len(names)} tensors are left out, such as `{names[0]}`: {why}" for why, names in gone.items()]


def _layers(row: "PlanRow") -> str:
    """Ranges, as many as the column holds: alternating layers would need a line of their own."""
    ranges = row.layers.split()
    shown = ranges[:_RANGES_SHOWN] if len(ranges) > _RANGES_SHOWN + 1 else ranges
    return " ".join(shown) + (f" +{len(ranges) - len(shown)}" if len(shown) < len(ranges) else "")


def _roles(row: "PlanRow") -> str:
    return " ".join(row.roles) + (f" ({row.why})" if row.why else "")


def _note_left_out(out: Out, plan: "Plan") -> None:
    from tqcli.checkpoint.sidecars import sidecars

    _, left_out = sidecars(plan.source.storage)
    for name, reason in left_out.items():
        out.note(f"note: `{name}` is not copied: {reason}")


def plan_data(plan: "Plan", recipe: str) -> dict[str, object]:
    """The same as JSON."""
    from tqcli.plan_summary import plan_rows

    return {
        "model": plan.source.storage.label,
        "revision": plan.source.storage.revision,
        "model_type": plan.source.config["model_type"],
        "recipe": recipe,
        "parameters": plan.parameters,
        "source_bytes": plan.source_bytes,
        "weight_bytes": plan.weight_bytes,
        "file_bytes": plan.file_bytes,
        "bits_per_weight": round(plan.weight_bytes * 8 / plan.parameters, 4) if plan.parameters else 0.0,
        "shards": {shard.name: shard.file_bytes for shard in plan.shards},
        "left_out": [one.weight.name for one in plan.left_out],
        "rows": [
            {"roles": row.roles, "layers": row.layers, "tensors": row.tensors, "becomes": row.becomes,
             "parameters": row.parameters, "bytes": row.nbytes, "why": row.why}
            for row in plan_rows(plan)
        ],
    }  # fmt: skip
