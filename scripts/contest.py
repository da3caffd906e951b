"""Programs that do the same work, measured in turns: CPU time, wall time and peak memory of each, and medians.

CPU time is user and system time of the whole process, so start-up counts. Peak memory is given twice: `resident` counts
mapped files too, `anonymous` (sampled) only what the process itself fills. Left out: what the programs are.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# torch stays out of this process: Linux counts the memory of the parent at the fork into the child's peak.

SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Contender:
    """A program that converts a model; `{model}` and `{output}` in its command stand for the two folders."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """Seconds; bytes. weights: as many as the work was."""

    cpu_seconds: float
    wall_seconds: float
    resident_peak: int
    anonymous_peak: int
    output_bytes: int
    weights: int


@dataclass(frozen=True)
class Conditions:
    """What all contenders run under. count: from the output folder, how many weights the work was."""

    model: Path
    threads: int
    scratch: Path | None
    timeout: float
    count: Callable[[Path], int]


def contest(contenders: Sequence[Contender], runs: int, conditions: Conditions) -> dict[str, list[Run]]:
    """Every contender `runs` times, taking turns. Exits with a program's own words where it fails."""
    found: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    read_through(conditions.model)
    for number in range(runs):
        for contender in contenders:
            run = measure(contender, conditions)
            found[contender.name].append(run)
            print(f"run {number + 1}  {describe(contender.name, run)}", flush=True)
    return found


def read_through(model: Path) -> None:
    """So that the first run does not wait for the disk more than the others."""
    buffer = bytearray(1 << 20)
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def measure(contender: Contender, conditions: Conditions) -> Run:
    """One conversion in a process of its own."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(threads, str(conditions.threads))
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="tq-bench-", dir=conditions.scratch) as temporary:
        output, log = Path(temporary, "output"), Path(temporary, "log")
        places = {"model": conditions.model, "output": output}
        command = [part.format(**places) if part in ("{model}", "{output}") else part for part in contender.command]
        with log.open("wb") as file:
            begin = time.monotonic()
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            watch = threading.Timer(conditions.timeout, process.kill)
            watch.start()
            anonymous = watch_memory(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            watch.cancel()
        wall = time.monotonic() - begin
        if process.returncode:
            words = log.read_text(errors="replace")[-2000:]
            sys.exit(f"error: {contender.name} ended with {process.returncode}\n{words}")
        return Run(
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            wall_seconds=wall,
            resident_peak=usage.ru_maxrss * 1024,
            anonymous_peak=anonymous,
            output_bytes=sum(path.stat().st_size for path in output.glob("*.safetensors")),
            weights=conditions.count(output),
        )


def watch_memory(pid: int) -> int:
    """The largest anonymous memory seen, in bytes, until the process ends; it stays to be waited for."""
    peak = 0
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        except OSError:
            return peak
        fields = dict(line.split(":", 1) for line in status.splitlines())
        if fields["State"].split()[0] in "ZX":
            return peak
        peak = max(peak, int(fields.get("RssAnon", "0").split()[0]) * 1024)
        time.sleep(SAMPLE_SECONDS)


def median(runs: Sequence[Run]) -> Run:
    """Field by field."""
    columns = {name: statistics.median(asdict(run)[name] for run in runs) for name in asdict(runs[0])}
    whole = {name: int(columns[name]) for name in ("resident_peak", "anonymous_peak", "output_bytes", "weights")}
    return Run(cpu_seconds=columns["cpu_seconds"], wall_seconds=columns["wall_seconds"], **whole)


def describe(name: str, run: Run) -> str:
    """One line."""
    return (
        f"{name:28} {run.cpu_seconds:8.2f} CPU-s {run.wall_seconds:8.2f} s"
        f"  {run.weights / 1e6 / run.cpu_seconds:7.1f} M weights/CPU-s"
        f"  resident {run.resident_peak / 1e6:7.0f} MB  anonymous {run.anonymous_peak / 1e6:7.0f} MB"
        f"  output {run.output_bytes / 1e6:8.1f} MB of {run.weights / 1e6:.1f} M weights"
    )


def multiples(peer: Run, run: Run) -> Mapping[str, float]:
    """What the peer takes, as multiples of what ours takes."""
    return {
        "less CPU time": peer.cpu_seconds / run.cpu_seconds,
        "less CPU time a weight": (peer.cpu_seconds / peer.weights) / (run.cpu_seconds / run.weights),
        "less resident memory": peer.resident_peak / run.resident_peak,
        "less anonymous memory": peer.anonymous_peak / run.anonymous_peak,
    }
