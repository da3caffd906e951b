"""The short divisions of the fused kernels, walked through case by case with the machine's own fused multiply-add."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("exhaustive_division.cpp")


@pytest.mark.slow
def test_every_significand(tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("needs a C++ compiler and a processor with fused multiply-add")
    program = tmp_path / "exhaustive_division"
    flags = ["-mavx2", "-mfma"] if platform.machine() == "x86_64" else []
    options = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", *flags]
    subprocess.run([compiler, *options, str(SOURCE), "-o", str(program)], check=True)
    # BF16 has 7 stored significand bits and F16 has 10, which include those of BF16.
    done = subprocess.run([str(program), "10"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0"]
