"""The shell scripts parse, can be run, and refuse what they do not know. What they do is the CI's to show."""

import os
import subprocess

import pytest

SHELL = ["scripts/setup", "scripts/demo", "scripts/test", "scripts/test_vllm", "scripts/check", ".ci/run"]
PYTHON = [
    "bench_codec", "bench_convert", "bench_formats", "bench_trellis", "gen_full26b", "golden_fp8", "golden_mlx",
    "golden_trellis", "make_tiny_model", "measure_embeddings", "measure_kv", "measure_quality", "measure_recipes",
    "measure_sensitivity", "measure_trained_errors", "train_tiny_model", "train_trellis",
]  # fmt: skip


@pytest.mark.parametrize("name", SHELL)
def test_shell_scripts_parse_and_stop_at_errors(root, name):
    subprocess.run(["bash", "-n", name], cwd=root, check=True)
    text = (root / name).read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("name", [*SHELL, *(f"scripts/{name}" for name in PYTHON)])
def test_scripts_are_executable(root, name):
    assert os.access(root / name, os.X_OK)


@pytest.mark.parametrize("name", ["scripts/setup", "scripts/demo", "scripts/test_vllm"])
def test_help_says_what_a_script_does_and_runs_nothing(root, name):
    done = subprocess.run([root / name, "--help"], capture_output=True, text=True, timeout=20, check=True)
    assert f"{name}" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("name", ["scripts/setup", "scripts/demo"])
def test_an_unknown_option_is_an_error(root, name):
    done = subprocess.run([root / name, "--bogus"], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "--bogus" in done.stderr


def test_ci_fails_if_any_part_fails(root, tmp_path):
    """.ci/run in a folder of stand-ins: every part runs, and one failure is enough."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((root / ".ci" / "run").read_bytes())
    for failing in ("", "check", "test"):
        for name in ("setup", "check", "test"):
            script = tmp_path / "scripts" / name
            script.write_text(f"#!/bin/sh\necho ran {name}\nexit {int(name == failing)}\n")
            script.chmod(0o755)
        done = subprocess.run(["bash", tmp_path / ".ci" / "run"], capture_output=True, text=True, check=False)
        assert done.stdout.split("\n")[:-1] == ["ran setup", "ran check", "ran test"]
        assert done.returncode == int(bool(failing))


def test_ci_stops_where_the_setup_fails(root, tmp_path):
    (tmp_path / ".ci").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((root / ".ci" / "run").read_bytes())
    for name, status in (("setup", 3), ("check", 0), ("test", 0)):
        (tmp_path / "scripts" / name).write_text(f"#!/bin/sh\necho ran {name}\nexit {status}\n")
        (tmp_path / "scripts" / name).chmod(0o755)
    done = subprocess.run(["bash", tmp_path / ".ci" / "run"], capture_output=True, text=True, check=False)
    assert done.stdout == "ran setup\n"
    assert done.returncode == 3
