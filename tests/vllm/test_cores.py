"""Threads of the kernels get the cores of their rank, also where OpenMP has pinned the thread that begins them."""

import os
import subprocess
import sys

import pytest

from tqcli.runtime.vllm.cores import let_threads_sleep, listed_cores

PROGRAM = """
import os, threading, torch
from tqcli.runtime.vllm.cores import unpin
torch.randn(500, 500) @ torch.randn(500, 500)
before = os.sched_getaffinity(0)
unpin()
found = []
thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
thread.start(); thread.join()
print(len(before), sorted(found[0]))
"""


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({}, set()),
        ({"OMP_PLACES": "{0,1,5}"}, {0, 1, 5}),
        ({"GOMP_CPU_AFFINITY": "2 3 8-10"}, {2, 3, 8, 9, 10}),
        ({"KMP_AFFINITY": "granularity=fine,explicit,proclist=[4,6]", "OMP_PLACES": ""}, {4, 6}),
        ({"OMP_PLACES": "cores"}, set()),
    ],
)
def test_cores_are_those_that_openmp_was_told(environment, cores):
    assert listed_cores(environment) == cores


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "0"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_openmp_waits_as_the_user_says(before, after):
    let_threads_sleep(before)
    assert before == after


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are pinned on Linux only")
def test_a_pinned_thread_is_free_again():
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core only")
    wanted = cores[:2]
    environment = {**os.environ, "GOMP_CPU_AFFINITY": " ".join(map(str, wanted)), "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == f"1 {wanted}"
