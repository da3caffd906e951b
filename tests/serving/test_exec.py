"""vLLM takes this process's place: its arguments, its environment, its exit status, its signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import checkpoints

_FAKE = """
import json, os, sys, time
print(json.dumps({"arguments": sys.argv[1:], "key": os.environ.get("VLLM_API_KEY"), "pid": os.getpid()}), flush=True)
if "--wait" in sys.argv:
    time.sleep(60)
sys.exit(7)
"""


@pytest.fixture
def start(here):
    """A Python that has a vLLM of a kind, without a GPU for it."""
    checkpoints.gemma(here / "model")
    package = here / "packages"
    (package / "vllm/entrypoints/cli").mkdir(parents=True)
    for folder in ("vllm", "vllm/entrypoints", "vllm/entrypoints/cli"):
        (package / folder / "__init__.py").touch()
    (package / "vllm/entrypoints/cli/main.py").write_text(_FAKE)
    (package / "vllm-0.32.0+cpu.dist-info").mkdir()
    (package / "vllm-0.32.0+cpu.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"
    )

    def run(*arguments: str) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("TQ_", "VLLM_"))}
        path = {"PYTHONPATH": os.pathsep.join([str(package), environment.get("PYTHONPATH", "")])}
        code = "from tqcli.cli.main import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "serve", "model", *arguments], env=environment | path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return run


def test_its_arguments_and_its_exit_status(start):
    process = start("--engine", "vllm", "--api-key", "secret", "--port", "81", "--", "--enforce-eager", "-tp", "2")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 7, err
    *shown, last = out.splitlines()
    assert [line.split()[0] for line in shown] == ["model", "engine", "context", "cache", "memory", "starts"]
    assert "secret" not in "".join(shown)
    assert "VLLM_API_KEY=... vllm serve model --host 127.0.0.1 --port 81 " in shown[-1]
    assert "--served-model-name model --enforce-eager -tp 2 --kv-cache-memory-bytes " in shown[-1]
    told = json.loads(last)
    assert told["arguments"] == shown[-1].partition("vllm ")[2].split()
    assert told["key"] == "secret"
    assert told["pid"] == process.pid


def test_its_signals(start):
    process = start("--engine", "vllm", "--", "--wait")
    for line in process.stdout:
        if line.startswith("{"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_without_a_gpu_auto_is_the_embedded_engine(start):
    out, err = start("--print").communicate(timeout=60)
    assert "--engine cpu" in out, err


def test_a_vllm_that_does_not_know_its_version_cannot_be_started(start):
    import shutil

    shutil.rmtree(next(Path("packages").glob("*.dist-info")))
    process = start("--engine", "vllm")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "not installed in this Python" in err
