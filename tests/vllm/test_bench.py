"""`vllm serve` alone serves a packed folder, and `vllm bench serve` measures it."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.vllm_runs import ENVIRONMENT, VLLM

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM.exists(), reason="no environment of vLLM; scripts/test_vllm makes it"),
]
COMMAND = (str(VLLM), "-m", "vllm.entrypoints.cli.main")
_SECONDS = 300


@contextmanager
def served(folder: Path, log: Path) -> Iterator[int]:
    """The port of a server that answers."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    # A server has an engine of its own process, whatever the other tests ask for.
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    options = ("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "256", "--enforce-eager")
    with log.open("w") as output:
        command = [*COMMAND, "serve", str(folder), *options, "--served-model-name", "tiny"]
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        wait(process, port, log)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def wait(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-5000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-5000:])


def test_a_packed_folder_is_served_and_measured(convert, tmp_path):
    folder, _ = convert("qwen3_moe", "tq3t-sensitive")
    with served(folder, tmp_path / "log.txt") as port:
        command = [
            *COMMAND, "bench", "serve", "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}",
            "--model", "tiny", "--tokenizer", str(folder), "--dataset-name", "random", "--num-prompts", "6",
            "--random-input-len", "24", "--random-output-len", "8", "--ignore-eos", "--save-result",
            "--result-dir", str(tmp_path), "--result-filename", "result.json",
        ]  # fmt: skip
        environment = {**os.environ, **ENVIRONMENT}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == 6
    assert result["total_output_tokens"] == 48
    assert result["output_throughput"] > 0
