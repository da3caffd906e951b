"""A conversion from the first header to the verified folder: what the command line and Python callers both run.

Order: headers and config.json -> plan -> checks (architecture, source not compressed already, disk, output folder)
-> download or byte ranges -> write -> verify. Nothing is written before every check has passed.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqcli.architectures.base import find
from tqcli.checkpoint.overlay import Overlay
from tqcli.checkpoint.reader import Checkpoint, open_checkpoint
from tqcli.checkpoint.storage import LocalFolder, Storage
from tqcli.convert import Progress, convert, give_up, preflight
from tqcli.errors import CheckFailed, InputError, MachineError
from tqcli.hub.base_model import local_checkpoint, open_model
from tqcli.hub.fetch import open_source
from tqcli.layouts.base import layout_of
from tqcli.layouts.originals import restored
from tqcli.output_folder import check, claim
from tqcli.pieces import PIECE_BYTES
from tqcli.plan import Plan, make_plan
from tqcli.readers.find import read
from tqcli.recipe import Recipe, load_recipe
from tqcli.requantising import refuse_compressed, refuse_packed, refuse_unreadable
from tqcli.verify import Report, verify

DEFAULT_SHARD_BYTES = 5_000_000_000
# Interpreter and libraries, measured without torch; pieces in flight come on top.
_BASE_MEMORY = 90_000_000
# Of each stored tensor: its place in the plan, in the headers read back and in the record. Measured with 35,000.
_MEMORY_OF_NAME = 4_500


@dataclass(frozen=True)
class Job:
    """What a person asked for. from_quantized: a compressed source is decoded and compressed again.

    base: the model that has the tensors that the source lacks; None for the one that the source names.
    """

    source: str
    recipe: str
    changes: Sequence[str] = ()
    from_quantized: bool = False
    revision: str | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES
    base: str | None = None


@dataclass(frozen=True)
class Done:
    """A folder that is whole and verified. written: False where it was so before."""

    report: Report
    written: bool


def plan_job(job: Job) -> Plan:
    """Read headers and decide. Raises InputError before anything large is fetched."""
    recipe: Recipe = load_recipe(job.recipe, job.changes)
    source = open_model(open_source(job.source, job.revision), job.base)
    architecture = find(source.config)
    compresses_plain = bool(recipe.formats) and not job.from_quantized
    if compresses_plain:
        # Before it is read: a folder that contradicts itself is refused for what it is.
        refuse_compressed(source)
    contents = read(source)
    if compresses_plain:
        refuse_packed(source, contents)
    refuse_unreadable(source, contents)
    originals = restored(contents, source, architecture)
    layout = layout_of(recipe)
    arrangement = layout.arrange(originals, source)
    arrangement.check(originals)
    return make_plan(
        source, architecture, recipe, arrangement, lambda made: layout.lay_out(made, source, job.shard_bytes)
    )


def disk_needed(plan: Plan) -> int:
    """Bytes that the output takes, small files included."""
    side = sum(size for name, size in plan.source.storage.files().items() if not name.endswith(".safetensors"))
    return plan.file_bytes + side


def memory_needed(plan: Plan, workers: int) -> int:
    """Bytes of memory: the interpreter, pieces in flight with their codes, and names; never a tensor as a whole."""
    stored = sum(len(decision.stored) for decision in plan.decisions)
    return _BASE_MEMORY + (workers + 2) * PIECE_BYTES * 3 // 2 + stored * _MEMORY_OF_NAME


def check_disk(plan: Plan, folder: Path) -> None:
    """Raises MachineError when the output cannot fit. Bytes of an interrupted run are counted as free."""
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors*")) if folder.is_dir() else 0
    free = free_disk(folder) + there
    if disk_needed(plan) > free:
        why = f"{disk_needed(plan) / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
        raise MachineError(f"the output does not fit on the disk of `{folder}`", why=why)


def free_disk(folder: Path) -> int:
    """Free bytes where the folder is, or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def run_job(
    plan: Plan,
    folder: Path,
    *,
    workers: int,
    overwrite: bool,
    stream: bool,
    every_row: bool,
    progress: Progress,
) -> Done:
    """Convert and verify; where the same conversion ended here before, verify alone.

    Raises InputError, MachineError, or CheckFailed where the folder is not right.
    """
    _check_apart(plan.source.storage, folder)
    if check(plan, folder, overwrite=overwrite):
        return Done(_verify_again(plan, folder, every_row=every_row, workers=workers), written=False)
    check_disk(plan, folder)
    plan = plan if stream else _on_this_machine(plan)
    preflight(plan)
    with claim(plan, folder, overwrite=overwrite) as journal:
        convert(plan, folder, journal, workers=workers, progress=progress)
        try:
            report = verify_folder(folder, _local(plan), every_row=every_row, workers=workers)
        except (CheckFailed, InputError) as error:
            give_up(folder, journal)
            fix = f"`{folder}` is left unfinished; the same command starts over"
            raise CheckFailed(error.what, why=error.why, fix=fix) from error
        journal.remove()
    return Done(report, written=True)


def _verify_again(plan: Plan, folder: Path, *, every_row: bool, workers: int) -> Report:
    try:
        return verify_folder(folder, _local(plan), every_row=every_row, workers=workers)
    except (CheckFailed, InputError) as error:
        why = "; ".join(part for part in (error.what, error.why) if part)
        what = f"`{folder}` was converted, but is no longer right"
        raise CheckFailed(what, why=why, fix="--overwrite") from error


def _check_apart(storage: Storage, folder: Path) -> None:
    """What `output_folder` asks of one source folder, asked of two."""
    for part in (storage.folder, storage.base) if isinstance(storage, Overlay) else ():
        if isinstance(part, LocalFolder) and folder.resolve().is_relative_to(part.path):
            why = "sources are never written to"
            raise InputError(f"`{folder}` lies inside `{part.label}`", why=why, fix="choose another output folder")


def _local(plan: Plan) -> Checkpoint | None:
    """The source to compare with. One on the Hub is not read again: that would cost as much as the conversion."""
    return plan.source if _is_local(plan.source.storage) else None


def _is_local(storage: Storage) -> bool:
    parts = (storage.folder, storage.base) if isinstance(storage, Overlay) else (storage,)
    return all(isinstance(part, LocalFolder) for part in parts)


def verify_folder(folder: Path, source: Checkpoint | None, *, every_row: bool, workers: int) -> Report:
    """Open a written folder anew and check it."""
    with LocalFolder(folder) as storage:
        return verify(open_checkpoint(storage), source, every_row=every_row, workers=workers)


def _on_this_machine(plan: Plan) -> Plan:
    """Fetch a Hub model's files, whole; a local source stays as it is."""
    if _is_local(plan.source.storage):
        return plan
    # The plan's offsets are the headers': what is fetched must have the headers that were planned with.
    return replace(plan, source=replace(plan.source, storage=local_checkpoint(plan.source).storage))
