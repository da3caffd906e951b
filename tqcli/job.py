"""A conversion from the first header to the verified folder: what the command line and Python callers both run.

Order: headers and config.json -> plan -> checks (architecture, source not compressed already, disk, output folder)
-> download or byte ranges -> write -> verify. Nothing is written before every check has passed.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqcli.architectures.base import find
from tqcli.checkpoint.reader import Checkpoint, open_checkpoint
from tqcli.checkpoint.sidecars import CONFIG_NAME, sidecars
from tqcli.checkpoint.storage import LocalFolder
from tqcli.convert import Progress, convert, give_up, preflight
from tqcli.errors import CheckFailed, InputError, MachineError
from tqcli.hub.fetch import download, open_source
from tqcli.layouts.base import layout_of
from tqcli.layouts.originals import original_weights
from tqcli.output_folder import check, claim
from tqcli.pieces import PIECE_BYTES
from tqcli.plan import Plan, make_plan
from tqcli.recipe import Recipe, load_recipe
from tqcli.requantising import refuse_compressed
from tqcli.verify import Report, verify

DEFAULT_SHARD_BYTES = 5_000_000_000
# Interpreter and libraries, measured without torch; pieces in flight come on top.
_BASE_MEMORY = 90_000_000


@dataclass(frozen=True)
class Job:
    """What a person asked for. from_quantized: a compressed source is decoded and compressed again."""

    source: str
    recipe: str
    changes: Sequence[str] = ()
    from_quantized: bool = False
    revision: str | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES


@dataclass(frozen=True)
class Done:
    """A folder that is whole and verified. written: False where it was so before."""

    report: Report
    written: bool


def plan_job(job: Job) -> Plan:
    """Read headers and decide. Raises InputError before anything large is fetched."""
    recipe: Recipe = load_recipe(job.recipe, job.changes)
    source = open_checkpoint(open_source(job.source, job.revision))
    architecture = find(source.config)
    if recipe.formats and not job.from_quantized:
        refuse_compressed(source)
    originals = original_weights(source, architecture)
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


def memory_needed(workers: int) -> int:
    """Bytes of memory: pieces in flight with their codes, and the interpreter. It does not grow with the model."""
    return _BASE_MEMORY + (workers + 2) * PIECE_BYTES * 3 // 2


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


def _local(plan: Plan) -> Checkpoint | None:
    """The source to compare with. One on the Hub is not read again: that would cost as much as the conversion."""
    return plan.source if isinstance(plan.source.storage, LocalFolder) else None


def verify_folder(folder: Path, source: Checkpoint | None, *, every_row: bool, workers: int) -> Report:
    """Open a written folder anew and check it."""
    with LocalFolder(folder) as storage:
        return verify(open_checkpoint(storage), source, every_row=every_row, workers=workers)


def _on_this_machine(plan: Plan) -> Plan:
    """Fetch a Hub model's files, whole; a local source stays as it is."""
    storage = plan.source.storage
    if isinstance(storage, LocalFolder):
        return plan
    from tqcli.hub.remote import HubFolder

    if not isinstance(storage, HubFolder):
        raise TypeError(f"{type(storage).__name__} cannot be fetched")
    copied, _ = sidecars(storage)
    wanted = [*(shard.name for shard in plan.source.shards), CONFIG_NAME, *copied]
    fetched = replace(plan.source, storage=download(storage, wanted))
    # The plan's offsets are the headers': what was fetched must have the headers that were planned with.
    if open_checkpoint(fetched.storage).content_fingerprint() != plan.source.content_fingerprint():
        raise MachineError(f"the files fetched from `{storage.label}` are not those that were listed")
    return replace(plan, source=fetched)
