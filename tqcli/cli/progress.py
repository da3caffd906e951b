"""How far a conversion is: a bar with an ETA and the memory in use on a terminal, a line a shard elsewhere."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqcli.cli.out import Out, size
from tqcli.convert import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from tqcli.checkpoint.writer import ShardLayout
    from tqcli.plan import Plan

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ShardLines:
    """For logs: one line when a shard is whole."""

    def __init__(self, out: Out, shards: int) -> None:
        self._out = out
        self._shards = shards
        self._done = 0

    def resumed(self, shard: "ShardLayout", source_bytes: int) -> None:
        """Count a shard of an earlier run."""
        self._say(shard, "kept from before")

    def advance(self, source_bytes: int) -> None:
        """Nothing to say below a shard."""

    def shard_done(self, shard: "ShardLayout") -> None:
        """Count a new shard."""
        self._say(shard, "written")

    def _say(self, shard: "ShardLayout", what: str) -> None:
        self._done += 1
        self._out.note(f"{self._done}/{self._shards}  {shard.name}  {size(shard.file_bytes)}  {what}")


class ShardBar:
    """For people: one bar over the bytes of the source."""

    def __init__(self, bar: "Bar", task: "TaskID") -> None:
        self._bar = bar
        self._task = task

    def resumed(self, shard: "ShardLayout", source_bytes: int) -> None:
        """Move over what an earlier run did."""
        self.advance(source_bytes)

    def advance(self, source_bytes: int) -> None:
        """Move on."""
        self._bar.update(self._task, advance=source_bytes, memory=size(resident_memory()))

    def shard_done(self, shard: "ShardLayout") -> None:
        """The bar counts bytes, not shards."""


@contextmanager
def progress_bar(out: Out, plan: "Plan") -> Iterator[Progress]:
    """What fits standard error: a bar, lines, or silence for `--format quiet`."""
    if not (out.human and sys.stderr.isatty()) or os.environ.get("TQ_NO_PROGRESS"):
        yield ShardLines(out, len(plan.shards))
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    memory = TextColumn("{task.fields[memory]}")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), memory)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield ShardBar(bar, bar.add_task("convert", total=plan.source_bytes, memory=""))


def resident_memory() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
