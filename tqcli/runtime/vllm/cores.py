"""The kernels' own threads beside those of OpenMP, by which torch computes.

OpenMP's threads stay awake for some milliseconds after each operation, waiting for the next, and take the cores from
the products in between. vLLM does not let their number be changed, so they are told to sleep at once.

vLLM has OpenMP pin its threads, where Intel's or GNU's library is preloaded each to one core: the thread that runs the
model too. Threads that the kernels begin inherit that core, and all of them would share it. So the thread that runs the
model may use every core of its rank again. Left out: machines without Linux' calls, where nothing is pinned.
"""

import os
import re
from collections.abc import Mapping, MutableMapping

# What vLLM sets in the process of a rank; all of them list cores.
_LISTS = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES")
_CORES = re.compile(r"(\d+)(?:-(\d+))?")
# GNU's and everybody's word for how threads wait. Read when the library is loaded: by processes that begin later.
_SPIN, _POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def let_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Have OpenMP's threads of processes that begin with this environment sleep, unless it says how they wait."""
    if not environment.get(_POLICY):
        environment.setdefault(_SPIN, "0")


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
