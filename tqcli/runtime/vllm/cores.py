"""On which cores the kernels' own threads run.

vLLM has OpenMP pin its threads, where Intel's or GNU's library is preloaded each to one core: the thread that runs the
model too. Threads that the kernels begin inherit that core, and all of them would share it. So the thread that runs the
model may use every core of its rank again. Left out: machines without Linux' calls, where nothing is pinned.
"""

import os
import re
from collections.abc import Mapping

# What vLLM sets in the process of a rank; all of them list cores.
_LISTS = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES")
_CORES = re.compile(r"(\d+)(?:-(\d+))?")


def unpin() -> None:
    """Let the calling thread, and those that it begins, run on all cores that its process was given."""
    cores = listed_cores(os.environ)
    if not cores or not hasattr(os, "sched_setaffinity"):
        return
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        # A list of cores that are not there is OpenMP's to complain of; it is slower so, and not wrong.
        return


def listed_cores(environment: Mapping[str, str]) -> set[int]:
    """The cores of the first list that is set; empty where none is."""
    said = next((environment[name] for name in _LISTS if environment.get(name)), "")
    found: set[int] = set()
    for first, last in _CORES.findall(said):
        found.update(range(int(first), int(last or first) + 1))
    return found
