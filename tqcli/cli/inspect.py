"""`tq inspect`: what a checkpoint holds, from its headers; `--verify` reads the weights as well."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tqcli.cli.options import Base, Format, Revision, Workers
from tqcli.cli.out import Out, OutputFormat, command, count, shards, size
from tqcli.cli.plan import base_note
from tqcli.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from tqcli.checkpoint.reader import Checkpoint
    from tqcli.inspection import Difference, Item, Summary
    from tqcli.layouts.hlwq_proof import Proof


def inspect_command(
    model: Annotated[str, typer.Argument(help="Local folder or Hub id, compressed or not.")],
    names: Annotated[bool, typer.Option("--names", help="Print every weight's name.")] = False,
    tensors: Annotated[
        str | None, typer.Option(help="Print weights whose name fits a glob or re: pattern.", metavar="GLOB")
    ] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Print the recipe it was made with.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read the weights and check them.")] = False,
    source: Annotated[
        str | None, typer.Option(help="With --verify: compare with this original.", metavar="MODEL")
    ] = None,
    verify_all: Annotated[bool, typer.Option("--all", help="With --source: compare every row.")] = False,
    diff: Annotated[
        str | None, typer.Option(help="Compare with another checkpoint, by headers.", metavar="OTHER")
    ] = None,
    base: Base = None,
    revision: Revision = None,
    workers: Workers = None,
    output_format: Format = OutputFormat.human,
) -> None:
    """Show what a checkpoint holds, from its headers alone.

    Nothing is loaded or downloaded, unless `--verify` reads the weights.

    Examples:

      tq inspect out/

      tq inspect google/gemma-4-26B-A4B-it --tensors '*.experts.*'

      tq inspect out/ --verify --source ./model --all
    """
    with command(output_format) as out:
        from tqcli.inspection import compare, summarize

        _check_flags(names, tensors is not None, recipe, verify, diff is not None, source, verify_all)
        checkpoint = _open(out, model, revision, base, source)
        summary = summarize(checkpoint)
        if verify:
            _verify(out, checkpoint, source, verify_all, workers)
        elif recipe:
            _print_recipe(out, summary)
        elif names:
            _print_names(out, summary)
        elif tensors is not None:
            _print_items(out, summary.select(tensors))
        elif diff is not None:
            other = summarize(_open(out, diff, None))
            _print_difference(out, compare(summary, other), model, diff)
        else:
            _print_summary(out, summary)


def _check_flags(
    names: bool, tensors: bool, recipe: bool, verify: bool, diff: bool, source: str | None, verify_all: bool
) -> None:
    views = {"--verify": verify, "--recipe": recipe, "--names": names, "--tensors": tensors, "--diff": diff}
    chosen = [f"`{view}`" for view, wanted in views.items() if wanted]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} cannot go together", fix="one of them at a time")
    if source is not None and not verify:
        raise InputError("`--source` is there without `--verify`", fix="`tq inspect MODEL --verify --source ORIGINAL`")
    if verify_all and source is None:
        raise InputError(
            "`--all` is there without `--source`", fix="`tq inspect MODEL --verify --source ORIGINAL --all`"
        )


def _open(
    out: Out, model: str, revision: str | None, base: str | None = None, source: str | None = None
) -> "Checkpoint":
    """base: named by the user. source: what is compared with, which is the base of a folder that is not whole."""
    from tqcli.checkpoint.reader import CONFIG_FILE, open_checkpoint
    from tqcli.hub.base_model import open_model, wants_base
    from tqcli.hub.fetch import open_source
    from tqcli.inspection import is_unfinished

    storage = open_source(model, revision)
    if is_unfinished(storage):
        fix = "the `tq convert` command that began it goes on"
        if CONFIG_FILE not in storage.files():
            raise InputError(f"`{model}` is an unfinished conversion", fix=fix)
        out.note(f"note: `{model}` was converted but not verified: {fix}")
    if base is None and source is not None and wants_base(storage):
        base = source
    # Without a base the folder is shown as it is; only one without config.json needs it to be opened at all.
    whole = base is not None or CONFIG_FILE not in storage.files()
    checkpoint = open_model(storage, base) if whole else open_checkpoint(storage)
    if note := base_note(checkpoint) or _base_needed(checkpoint, whole):
        out.note(note)
    return checkpoint


def _base_needed(checkpoint: "Checkpoint", whole: bool) -> str:
    from tqcli.hub.base_model import lacks_tensors, named_base

    if whole or not lacks_tensors(checkpoint):
        return ""
    named = named_base(checkpoint)
    return f"note: norms, routers and the like are not here, but in the base model{f' `{named}`' if named else ''}"


def _print_summary(out: Out, summary: "Summary") -> None:
    revision = f"   {summary.revision[:12]}" if summary.revision else ""
    out.line(f"model    {summary.model}{revision}   {summary.model_type}   {count(summary.parameters)} weights")
    if summary.tool:
        out.line(f"made by  {summary.tool}   from {summary.original_model or 'an unnamed model'}")
    out.line()
    rows = [
        (row.role, row.kind, str(row.tensors), count(row.parameters), size(row.nbytes)) for row in summary.by_role()
    ]
    out.table(("role", "stored as", "tensors", "weights", "size"), rows, right=(2, 3, 4))
    out.line()
    out.line(f"{size(summary.nbytes)} in {shards(summary.shards)}   {summary.bits_per_weight:.2f} bits per weight")
    if not summary.known_architecture:
        out.note(f"note: model_type `{summary.model_type}` is not known, so no roles are shown")
    for note in summary.notes:
        out.note(f"note: {note}")
    for name, reason in summary.ignored_files:
        out.note(f"note: `{name}` is left out: {reason}")
    out.result(_summary_data(summary), f"{summary.bits_per_weight:.4f}")


def _summary_data(summary: "Summary") -> dict[str, object]:
    return {
        "model": summary.model,
        "revision": summary.revision,
        "model_type": summary.model_type,
        "tool": summary.tool,
        "original_model": summary.original_model,
        "parameters": summary.parameters,
        "bytes": summary.nbytes,
        "bits_per_weight": round(summary.bits_per_weight, 4),
        "shards": summary.shards,
        "roles": [
            {"role": row.role, "stored_as": row.kind, "tensors": row.tensors, "parameters": row.parameters,
             "bytes": row.nbytes}
            for row in summary.by_role()
        ],
        **({"notes": list(summary.notes)} if summary.notes else {}),
    }  # fmt: skip


def _print_names(out: Out, summary: "Summary") -> None:
    names = [item.name for item in summary.items]
    for name in names:
        out.line(name)
    out.result({"names": names}, *names)


def _print_items(out: Out, items: "list[Item]") -> None:
    # The name comes last: it is long, and so nothing after it is pushed off the screen.
    rows = [(item.kind, "x".join(map(str, item.shape)), size(item.nbytes), item.file, item.name) for item in items]
    if len({item.file for item in items}) > 1:
        out.table(("stored as", "shape", "size", "file", "name"), rows, right=(2,))
    else:
        out.table(("stored as", "shape", "size", "name"), [(*row[:3], row[4]) for row in rows], right=(2,))
    data = [
        {"name": item.name, "role": item.role, "stored_as": item.kind, "shape": list(item.shape),
         "bytes": item.nbytes, "file": item.file}
        for item in items
    ]  # fmt: skip
    out.result({"tensors": data}, *(item.name for item in items))


def _print_recipe(out: Out, summary: "Summary") -> None:
    from tqcli.documents import recipe_toml

    if summary.recipe is None:
        raise InputError(f"`{summary.model}` holds no recipe", why="tq did not write it")
    lines = recipe_toml(summary.recipe).decode().splitlines()
    for line in lines:
        out.line(line)
    out.result({"recipe": dict(summary.recipe)}, *lines)


def _print_difference(out: Out, difference: "Difference", first: str, second: str) -> None:
    for label, names in ((first, difference.only_first), (second, difference.only_second)):
        for name in names:
            out.line(f"only in {label}: {name}")
    if difference.changed:
        out.table((first, second, "changed"), [(a, b, name) for name, a, b in difference.changed])
    out.line(
        f"{difference.same} alike, {len(difference.changed)} changed, {len(difference.only_first)} only in {first}, "
        f"{len(difference.only_second)} only in {second}"
    )
    out.result(
        {
            "same": difference.same,
            "changed": [{"name": name, "first": a, "second": b} for name, a, b in difference.changed],
            "only_first": list(difference.only_first),
            "only_second": list(difference.only_second),
        },
        str(len(difference.changed) + len(difference.only_first) + len(difference.only_second)),
    )
    if difference.changed or difference.only_first or difference.only_second:
        raise CheckFailed("the two checkpoints differ")


def _verify(out: Out, checkpoint: "Checkpoint", source: str | None, every_row: bool, workers: int | None) -> None:
    from tqcli.cli.convert import print_checked, report_data
    from tqcli.convert import default_workers, kernels
    from tqcli.inspection import prove_levels, to_verify
    from tqcli.verify import verify

    kernels()
    checkpoint = to_verify(checkpoint)
    original = _open(out, source, None) if source else None
    # First: with other levels no weight is near enough to the original, which verification would blame instead.
    proofs = prove_levels(checkpoint, original) if original else ()
    report = verify(checkpoint, original, every_row=every_row, workers=workers or default_workers())
    print_checked(out, report)
    for proof in proofs:
        proof.check()
        out.line(f"levels   {proof.claimed}, {_proved(proof)}, in {proof.weights} {proof.bits}-bit weights")
    out.result(report_data(report) | ({"levels": [asdict(proof) for proof in proofs]} if proofs else {}), "ok")


def _proved(proof: "Proof") -> str:
    others = [table for table in proof.fitting if table != proof.claimed]
    return f"or {' or '.join(others)}: too alike to tell apart" if others else "proved"
