"""`tq convert`: print the plan, run it, say what was written and checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tqcli.cli.options import Format, Revision, Workers, parse_size
from tqcli.cli.out import Out, OutputFormat, command, count, shards, size
from tqcli.errors import InputError

if TYPE_CHECKING:
    from tqcli.checkpoint.reader import Checkpoint
    from tqcli.job import Done
    from tqcli.plan import Plan
    from tqcli.plan_summary import PlanRow
    from tqcli.recipe_table import RecipeRow
    from tqcli.verify import Report

Base = Annotated[
    str | None, typer.Option("--base", help="Model that has the tensors that MODEL lacks.", metavar="MODEL")
]
_RANGES_SHOWN = 2
# Errors below this get a fifth digit.
_SMALL = 0.002
_KEPT = "finished shards are kept; the same command goes on from there"


def convert_command(
    model: Annotated[str | None, typer.Argument(help="Local folder or Hub id.")] = None,
    output: Annotated[Path | None, typer.Argument(help="Folder for the converted checkpoint.")] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Built-in recipe or TOML file.", metavar="NAME|FILE")
    ] = "tq3",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of the recipe.", metavar="KEY=VALUE")
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--recipes", help="List the built-in recipes and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the plan and its exact size; write nothing.")
    ] = False,
    revision: Revision = None,
    stream: Annotated[bool, typer.Option("--stream", help="Read a Hub model by byte ranges; never store it.")] = False,
    from_quantized: Annotated[
        bool, typer.Option("--from-quantized", help="Decode a compressed source and compress it again.")
    ] = False,
    base: Base = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier conversion.")] = False,
    shard_size: Annotated[str, typer.Option(help="Largest output file.", metavar="SIZE")] = "5GB",
    workers: Workers = None,
    verify_all: Annotated[
        bool, typer.Option("--all", help="Compare every row with the source afterwards, not a sample.")
    ] = False,
    output_format: Format = OutputFormat.human,
) -> None:
    """Convert a checkpoint with a recipe, then verify the result.

    An interrupted conversion goes on when the same command is run again; a
    finished one is only verified.

    Examples:

      tq convert google/gemma-4-26B-A4B-it out/

      tq convert ./model out/ --recipe tq3-sensitive --set seed=7

      tq convert ./model --dry-run
    """
    with command(output_format, kept=_KEPT) as out:
        if list_recipes:
            _list_recipes(out)
            return
        if model is None:
            raise InputError("which model?", fix="`tq convert MODEL OUT`, or `--recipes`")
        _convert(
            out, model, output, recipe, changes or [], dry_run, from_quantized, revision, base, stream,
            overwrite, shard_size, workers, verify_all,
        )  # fmt: skip


def _convert(
    out: Out, model: str, output: Path | None, recipe: str, changes: list[str], dry_run: bool, from_quantized: bool,
    revision: str | None, base: str | None, stream: bool, overwrite: bool, shard_size: str, workers: int | None,
    verify_all: bool,
) -> None:  # fmt: skip
    from tqcli import job
    from tqcli.cli.progress import progress_bar
    from tqcli.convert import default_workers

    if stream and verify_all:
        raise InputError("`--all` cannot go with `--stream`", why="a streamed source is not kept to compare with")
    threads = workers or default_workers()
    plan = job.plan_job(job.Job(model, recipe, changes, from_quantized, revision, parse_size(shard_size), base))
    _print_plan(out, plan, recipe, output, job.memory_needed(threads))
    if dry_run:
        out.result(_plan_data(plan, recipe), str(plan.file_bytes))
        return
    if output is None:
        raise InputError("where to?", fix="`tq convert MODEL OUT`, or `--dry-run`")
    with progress_bar(out, plan) as progress:
        done = job.run_job(
            plan,
            output,
            workers=threads,
            overwrite=overwrite,
            stream=stream,
            every_row=verify_all,
            progress=progress,
        )
    _print_done(out, plan, done, output)
    ending = {"output": str(output), "written": done.written, "verified": report_data(done.report)}
    out.result(_plan_data(plan, recipe) | ending, str(output))


def _print_plan(out: Out, plan: "Plan", recipe: str, output: Path | None, memory: int) -> None:
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


def _print_done(out: Out, plan: "Plan", done: "Done", output: Path) -> None:
    out.line()
    here = "wrote    " if done.written else "found    "
    out.line(f"{here}{output}   {size(plan.file_bytes)} in {shards(len(plan.shards))}")
    print_checked(out, done.report)
    out.line(f"next     tq inspect {output}")


def print_checked(out: Out, report: "Report") -> None:
    """What a verification looked at and the worst that it found."""
    sums = f"{report.checksums} checksums" if report.checksums else "no checksums recorded"
    out.line(f"checked  {report.tensors} tensors, {sums}, all values finite")
    if report.compared:
        out.line(f"         {report.compared} tensors against the source, {report.rows}")
    if report.worst:
        out.line(f"         worst relative squared error {report.worst.error:.4f}, of")
        out.line(f"         {report.worst.name}")


def report_data(report: "Report") -> dict[str, object]:
    """A verification as JSON."""
    worst = {"tensor": report.worst.name, "error": report.worst.error} if report.worst else None
    return {
        "tensors": report.tensors,
        "packed": report.packed,
        "checksums": report.checksums,
        "compared": report.compared,
        "rows": report.rows,
        "worst": worst,
    }


def _plan_data(plan: "Plan", recipe: str) -> dict[str, object]:
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


def _list_recipes(out: Out) -> None:
    from tqcli.recipe_table import recipe_rows
    from tqcli.reference_model import NAME

    rows = recipe_rows()
    out.table(("recipe", "what it does"), [(row.name, row.recipe.summary) for row in rows])
    out.line()
    numbers = [
        (row.name, f"{row.bits_per_weight:.2f}", size(row.file_bytes), _error(row.gaussian_error),
         _error(row.trained_error), row.loaders)
        for row in rows
    ]  # fmt: skip
    out.table(("recipe", "bits/w", NAME, "error", "trained", "loads in"), numbers, right=(1, 2, 3, 4))
    out.line()
    out.line("error: relative squared error of compressed weights, Gaussian and trained")
    out.result({row.name: _recipe_data(row) for row in rows}, *(row.name for row in rows))


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}" if value < _SMALL else f"{value:.4f}"


def _recipe_data(row: "RecipeRow") -> dict[str, object]:
    return {
        "recipe": row.recipe.to_flat(),
        "bits_per_weight": round(row.bits_per_weight, 4),
        "gemma_4_26b_bytes": row.file_bytes,
        "gaussian_error": row.gaussian_error,
        "trained_error": row.trained_error,
        "loads_in": row.loaders,
    }
