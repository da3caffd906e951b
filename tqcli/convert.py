"""Run a plan: read, encode, write, note in the journal; go on where an interrupted run stopped.

Order: journal, shards (each under a temporary name until it is whole), side files, then recipe, index and config
last, so that a folder without them is visibly unfinished. Claiming the folder, verification and the removal of the
journal are the caller's. Final bytes do not depend on workers or interruptions.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tq_kernels
from numpy.typing import NDArray

from tqcli.checkpoint.journal import FinishedShard, Journal
from tqcli.checkpoint.sidecars import CONFIG_NAME, copy_sidecar, same_bytes, sidecars
from tqcli.checkpoint.writer import ShardLayout, ShardWriter, disk_errors, write_atomically
from tqcli.comparison import checked_error
from tqcli.decision import Decision
from tqcli.documents import all_documents
from tqcli.errors import MachineError
from tqcli.pieces import Piece, PieceEncoder, begun_here, pieces
from tqcli.plan import Plan
from tqcli.weights import read_rows

Encoded = tuple[NDArray[Any], ...]


class Progress(Protocol):
    """Told of what happens; the command line draws it."""

    def resumed(self, shard: ShardLayout, source_bytes: int) -> None:
        """A shard was found whole from an earlier run."""

    def advance(self, source_bytes: int) -> None:
        """So many bytes of the source were read, encoded and written."""

    def shard_done(self, shard: ShardLayout) -> None:
        """A shard has its final name."""


class NoProgress:
    """For callers that do not watch."""

    def resumed(self, shard: ShardLayout, source_bytes: int) -> None:
        """Nothing to tell."""

    def advance(self, source_bytes: int) -> None:
        """Nothing to tell."""

    def shard_done(self, shard: ShardLayout) -> None:
        """Nothing to tell."""


def default_workers() -> int:
    """One for each processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernels() -> tq_kernels.Backend:
    """The kernels that will run. Raises MachineError where those asked for, or those installed, do not work here."""
    try:
        return tq_kernels.backend()
    except (tq_kernels.KernelsUnavailable, OSError) as error:
        raise MachineError("the kernels cannot be used", why=str(error)) from error


def convert(plan: Plan, folder: Path, journal: Journal, *, workers: int, progress: Progress) -> None:
    """Write the whole output folder, which `journal` holds for this plan, and leave the journal in place.

    Raises InputError for a bad source, MachineError for disk and permissions.
    """
    sha256: dict[str, str] = {}
    for shard in plan.shards:
        finished = journal.finished.get(shard.name)
        if finished and is_whole(folder, shard):
            progress.resumed(shard, _source_bytes(plan, shard))
        else:
            finished = _write_shard(plan, shard, folder, workers, progress)
            journal.add(finished)
            progress.shard_done(shard)
        sha256.update(finished.sha256)
    _write_documents(plan, folder, sha256)


def give_up(folder: Path, journal: Journal) -> None:
    """What was written is wrong: leave a folder that nobody can take for whole, and that the next run starts over."""
    journal.forget()
    with disk_errors(folder):
        (folder / CONFIG_NAME).unlink(missing_ok=True)


def is_whole(folder: Path, shard: ShardLayout) -> bool:
    """Whether a shard that the journal calls finished is still there, with its size and header."""
    path = folder / shard.name
    if not path.is_file() or path.stat().st_size != shard.file_bytes:
        return False
    with path.open("rb") as file:
        return file.read(len(shard.header)) == shard.header


def preflight(plan: Plan) -> None:
    """Encode and decode the first rows of the largest packed weight, so that what cannot work fails now.

    Raises InputError for a bad weight, CheckFailed where the decode is not what went in.
    """
    largest = max(plan.packed, key=lambda decision: decision.weight.nbytes, default=None)
    if largest is None or largest.format is None:
        return
    storage, weight = plan.source.storage, largest.weight
    first = next(pieces(largest, piece_bytes=1 << 16))
    decoded = largest.format.decode(PieceEncoder(storage)(first), weight.columns)
    truth = read_rows(storage, weight, 0, first.end - first.begin)
    lost, total = (float(np.square(x, dtype=np.float64).sum()) for x in (decoded - truth, truth))
    checked_error(weight.name, largest.format, lost, total)


def _write_shard(plan: Plan, shard: ShardLayout, folder: Path, workers: int, progress: Progress) -> FinishedShard:
    work = (piece for decision in _decisions(plan, shard) for piece in pieces(decision))
    with ShardWriter(folder, shard) as writer:
        for piece, encoded in _in_order(plan, work, workers):
            unknown = (stored for stored in piece.decision.stored if stored.content is None)
            for stored, array in zip(unknown, encoded, strict=True):
                if begun_here(piece, stored.block_rows):
                    writer.append(stored.name, array.data.cast("B"))
            progress.advance(piece.source_bytes)
        sha256 = writer.finish()
    return FinishedShard(shard.name, shard.file_bytes, sha256)


def _in_order(plan: Plan, work: Iterator[Piece], workers: int) -> Iterator[tuple[Piece, Encoded]]:
    """Encode pieces on several threads and give them back in order, a few in flight at a time."""
    encode = PieceEncoder(plan.source.storage)
    with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
        flight: deque[tuple[Piece, Future[Encoded]]] = deque()
        try:
            for piece in work:
                flight.append((piece, pool.submit(encode, piece)))
                if len(flight) > workers + 1:
                    yield _next(flight)
            while flight:
                yield _next(flight)
        finally:
            for _, future in flight:
                future.cancel()


def _next(flight: deque[tuple[Piece, Future[Encoded]]]) -> tuple[Piece, Encoded]:
    piece, future = flight.popleft()
    return piece, future.result()


def _decisions(plan: Plan, shard: ShardLayout) -> Iterator[Decision]:
    here = {tensor.name for tensor in shard.tensors}
    return (decision for decision in plan.decisions if decision.stored[0].name in here)


def _source_bytes(plan: Plan, shard: ShardLayout) -> int:
    return sum(decision.weight.nbytes for decision in _decisions(plan, shard))


def _write_documents(plan: Plan, folder: Path, sha256: dict[str, str]) -> None:
    storage = plan.source.storage
    copied, _ = sidecars(storage)
    for name in copied:
        if not same_bytes(storage, name, folder / name):
            copy_sidecar(storage, name, folder)
    for name, content in all_documents(plan, sha256, copied).items():
        write_atomically(folder / name, content)
