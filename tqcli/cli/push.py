"""`tq push`: verify a folder, write its model card, upload both; say what is removed before it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tqcli.cli.options import Format, Workers
from tqcli.cli.out import Out, OutputFormat, command, size
from tqcli.errors import InputError

if TYPE_CHECKING:
    from tqcli.checkpoint.reader import Checkpoint
    from tqcli.checkpoint.storage import LocalFolder
    from tqcli.hub.card_source import SourceCard
    from tqcli.hub.push import Destination, Target
    from tqcli.hub.push_files import Changes, PushedFile
    from tqcli.readers.find import Contents

_KEPT = "what was uploaded is kept; the same command goes on from there"


def push_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a compressed checkpoint.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Where to: `owner/name`; made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str, typer.Option(help="Branch, made if need be, or refs/pr/N.", metavar="BRANCH")] = "main",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request, change nothing else.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, where no card says it.", metavar="ID")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Model on the Hub that it was made from; `none`: on no Hub.", metavar="MODEL"),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.", metavar="TEXT")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the card and the files; upload nothing.")
    ] = False,
    workers: Workers = None,
    output_format: Format = OutputFormat.human,
) -> None:
    """Verify a folder and publish it on the Hub, with a model card.

    All becomes visible in one commit. After an interruption the same command
    goes on. Shards of an earlier push that are there no more are removed.

    Examples:

      tq push out/ me/gemma-4-26B-A4B-it-tq3t --dry-run

      tq push out/ me/gemma-4-26B-A4B-it-tq3t --private
    """
    with command(output_format, kept=_KEPT) as out:
        from tqcli.hub.push import Destination, check_destination

        destination = Destination(repository, private, revision, create_pr)
        check_destination(destination)
        _push(out, folder, destination, licence, base, message, dry_run, workers)


def _push(
    out: Out, folder: Path, destination: "Destination", licence: str | None, base: str | None, message: str | None,
    dry_run: bool, workers: int | None,
) -> None:  # fmt: skip
    from tqcli.hub.card_source import base_of
    from tqcli.hub.push import sign_in
    from tqcli.hub.push_files import changes

    subject = _open(folder)
    account = "" if dry_run else sign_in(destination.repository)
    original = base_of(subject.contents.record, base, destination.repository)
    source = _source(out, subject, original, licence)
    # What takes long comes after all that can be refused at once.
    _verify(out, subject.checkpoint, workers)
    files = _files(out, subject, destination, original, source)
    if dry_run:
        _print_dry_run(out, files, destination)
        return
    target = _open_target(out, destination, account)
    changed = changes(files, target.files, destination.repository)
    _print_changes(out, changed)
    url = _upload(out, target, changed, message)
    if changed.upload or changed.removed:
        out.line(f"pushed   {url}")
    else:
        out.line(f"the same {url}   nothing to upload")
    out.result({**_data(destination, files, changed), "url": url}, url)


@dataclass(frozen=True)
class _Subject:
    storage: "LocalFolder"
    checkpoint: "Checkpoint"
    contents: "Contents"


def _open(folder: Path) -> _Subject:
    from tqcli.checkpoint.reader import open_checkpoint
    from tqcli.checkpoint.storage import LocalFolder
    from tqcli.hub.base_model import lacks_tensors
    from tqcli.inspection import is_unfinished
    from tqcli.readers.find import read

    storage = LocalFolder(folder)
    if is_unfinished(storage):
        what = f"`{folder}` is an unfinished conversion"
        raise InputError(what, fix="the `tq convert` command that began it goes on")
    checkpoint = open_checkpoint(storage)
    contents = read(checkpoint)
    if not contents.packed:
        what = f"`{folder}` holds no compressed weights that tq reads"
        raise InputError(what, why="its card would call it a quantisation", fix="`hf upload` takes any folder")
    if lacks_tensors(checkpoint):
        what = f"`{folder}` does not hold every tensor of its model"
        raise InputError(what, fix=f"`tq convert {folder} OUT --from-quantized --recipe NAME` makes one that does")
    return _Subject(storage, checkpoint, contents)


def _verify(out: Out, checkpoint: "Checkpoint", workers: int | None) -> None:
    from tqcli.cli.convert import print_checked
    from tqcli.convert import default_workers, kernels
    from tqcli.inspection import to_verify
    from tqcli.verify import verify

    kernels()
    print_checked(out, verify(to_verify(checkpoint), None, every_row=False, workers=workers or default_workers()))


def _source(out: Out, subject: _Subject, base: str, licence: str | None) -> "SourceCard":
    from tqcli.hub.card_source import revision_of, source_card, with_licence

    revision = revision_of(subject.contents.record, base)
    found = with_licence(source_card(subject.storage, base, revision), licence)
    out.line(f"base     {base or 'on no Hub'}   licence {found.licence}")
    if found.gating:
        out.note("note: the original asks readers to agree to terms; the card carries them over, but only the")
        out.note("      settings of the new repository on the Hub make it ask as well")
    return found


def _files(
    out: Out, subject: _Subject, destination: "Destination", base: str, source: "SourceCard"
) -> list["PushedFile"]:
    from tqcli.hub import push_files
    from tqcli.hub.card import Facts, model_card
    from tqcli.hub.card_source import CARD_NAME
    from tqcli.hub.results import RESULTS_NAME, fingerprint, read_results
    from tqcli.inspection import summarize

    weights = fingerprint(subject.checkpoint)
    measured = read_results(subject.checkpoint, weights)
    revision = "" if destination.revision == "main" else destination.revision
    card = model_card(
        Facts(
            destination.repository, revision, base, source, subject.contents, summarize(subject.checkpoint), weights,
            measured,
        )
    )  # fmt: skip
    names, left_out = push_files.select_files(subject.checkpoint)
    for name in left_out:
        out.note(f"note: `{name}` is left out: it is no part of the checkpoint")
    files = [*push_files.hashed(subject.storage, names), push_files.made(CARD_NAME, card)]
    if measured.lines:
        files.append(push_files.made(RESULTS_NAME, b"\n".join((*measured.lines, b""))))
    return sorted(files, key=lambda file: file.name)


def _open_target(out: Out, destination: "Destination", account: str) -> "Target":
    from tqcli.hub.push import open_target

    target = open_target(destination)
    how = "a pull request" if destination.create_pr else destination.revision
    out.line(f"to       {destination.repository}   {how}   {'private' if target.private else 'public'}   as {account}")
    return target


def _upload(out: Out, target: "Target", changed: "Changes", message: str | None) -> str:
    from tqcli.hub.push import upload
    from tqcli.version import __version__

    def progress(file: "PushedFile", number: int, total: int) -> None:
        out.note(f"{number}/{total}  {file.name}  {size(file.size)}")

    said = (message or "").strip() or f"Upload a checkpoint compressed with tqcli {__version__}"
    url, remarks = upload(target, changed, said, progress)
    for remark in remarks:
        out.note(f"note: the Hub remarks: {remark}")
    return url


def _print_dry_run(out: Out, files: list["PushedFile"], destination: "Destination") -> None:
    card = next(file.content for file in files if file.name == "README.md")
    text = card.decode() if isinstance(card, bytes) else ""
    out.line()
    for line in text.splitlines():
        out.line(line)
    out.line()
    out.table(("file", "size"), [(file.name, size(file.size)) for file in files], right=(1,))
    out.line()
    out.line(f"{size(sum(file.size for file in files))} would go to {destination.repository}; nothing was uploaded")
    out.result({**_data(destination, files, None), "card": text}, *(file.name for file in files))


def _print_changes(out: Out, changed: "Changes") -> None:
    for file in changed.upload:
        how = "replaces" if file.name in changed.replaced else "adds"
        out.line(f"{how:9}{file.name}   {size(file.size)}")
    for name in changed.removed:
        out.line(f"removes  {name}")
    if changed.same:
        out.line(f"keeps    {changed.same} file{'' if changed.same == 1 else 's'} that the repository has already")
    # Before anything is changed.
    out.flush()


def _data(destination: "Destination", files: list["PushedFile"], changed: "Changes | None") -> dict[str, object]:
    data: dict[str, object] = {
        "repository": destination.repository,
        "revision": destination.revision,
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in files],
    }
    if changed is not None:
        data["uploaded"] = [file.name for file in changed.upload]
        data["removed"] = list(changed.removed)
    return data
