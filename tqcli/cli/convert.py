"""`tq convert`: print the plan (`plan`), run it, say what was written and checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tqcli.cli.budget import WantedSize, choice_data, choose_bits, print_choice, wanted_size
from tqcli.cli.options import Base, BitsPerWeight, Budget, Calibrate, Format, Revision, Workers, parse_size
from tqcli.cli.out import Out, OutputFormat, command, shards, size
from tqcli.cli.plan import plan_data, print_plan
from tqcli.cli.recipes import print_recipes
from tqcli.errors import InputError

if TYPE_CHECKING:
    from tqcli.job import Done
    from tqcli.plan import Plan
    from tqcli.verify import Report

_KEPT = "finished shards are kept; the same command goes on from there"


def convert_command(
    model: Annotated[str | None, typer.Argument(help="Local folder or Hub id.")] = None,
    output: Annotated[Path | None, typer.Argument(help="Folder for the converted checkpoint.")] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Built-in recipe or TOML file.", metavar="NAME|FILE")
    ] = "tq3t",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of the recipe.", metavar="KEY=VALUE")
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--recipes", help="List the built-in recipes and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the plan and its exact size; write nothing.")
    ] = False,
    budget: Budget = None,
    bits_per_weight: BitsPerWeight = None,
    calibrate: Calibrate = None,
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

      tq convert ./model out/ --budget 11GB
    """
    with command(output_format, kept=_KEPT) as out:
        if list_recipes:
            print_recipes(out)
            return
        if model is None:
            raise InputError("which model?", fix="`tq convert MODEL OUT`, or `--recipes`")
        _convert(
            out, model, output, recipe, changes or [], dry_run, from_quantized, revision, base, stream,
            overwrite, shard_size, workers, verify_all, wanted_size(budget, bits_per_weight, calibrate),
        )  # fmt: skip


def _convert(
    out: Out, model: str, output: Path | None, recipe: str, changes: list[str], dry_run: bool, from_quantized: bool,
    revision: str | None, base: str | None, stream: bool, overwrite: bool, shard_size: str, workers: int | None,
    verify_all: bool, wanted: WantedSize | None,
) -> None:  # fmt: skip
    from tqcli import job
    from tqcli.cli.progress import progress_bar
    from tqcli.convert import default_workers

    if stream and verify_all:
        raise InputError("`--all` cannot go with `--stream`", why="a streamed source is not kept to compare with")
    threads = workers or default_workers()
    asked = job.Job(model, recipe, changes, from_quantized, revision, parse_size(shard_size), base)
    plan = job.plan_job(asked)
    choice = choose_bits(out, plan, asked, wanted, threads) if wanted else None
    plan = choice.plan if choice else plan
    print_plan(out, plan, recipe, output, job.memory_needed(plan, threads))
    if choice:
        print_choice(out, choice)
    planned = plan_data(plan, recipe) | (choice_data(choice) if choice else {})
    if dry_run:
        out.result(planned, str(plan.file_bytes))
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
    out.result(planned | ending, str(output))


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
