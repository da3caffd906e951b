"""scripts/measure_kv on a tiny model: fewer bits cost more, and the last line says so in JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_loss_grows_as_the_bits_fall(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The function returns a list of the names that were read from the file. " * 40)
    options = ["--kv", "k8v8,k4v3,k2v2", "--lengths", "96", "--windows", "3", "--tail", "16", "--residual", "8"]
    command = [
        ROOT / "scripts/measure_kv",
        ROOT / "tests/fixtures/tiny_gemma4",
        "--text",
        text,
        "--block",
        "4",
        *options,
    ]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])["runs"]
    assert [run["kv"] for run in runs] == ["k8v8", "k4v3", "k2v2"]
    assert all(run["tokens"] == 48 for run in runs)
    losses = [run["kl_mean"] for run in runs]
    assert 0 < losses[0] < losses[1] < losses[2]
    assert runs[0]["plain_bytes"] > runs[0]["cache_bytes"] > runs[1]["cache_bytes"] > runs[2]["cache_bytes"]
    assert runs[1]["bytes_per_token"] == 60
