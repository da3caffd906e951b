"""vLLM with offloaded experts: as if it took this process's place, and stopped where it does not offload."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import checkpoints

from tqcli.errors import MachineError
from tqcli.serving import passing
from tqcli.serving.offload import OffloadWatch

_FAKE = """
import json, os, signal, subprocess, sys, time
def say(text, stream=sys.stdout, end="\\n"):
    stream.write(text + end)
    stream.flush()
def leave(*_):
    say("leaving")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
say(json.dumps(sys.argv[1:]))
exec(os.environ["FAKE_VLLM"])
"""
# A GPU, as far as tq can see.
_MAIN = "import torch; torch.cuda.is_available = lambda: True; from tqcli.cli.main import main; main()"
OFFLOADS = 'say("INFO [uva.py:82] Total CPU offloaded parameters: 0.01");'
READY = 'say("INFO [entry.py:140] Starting vLLM server on http://127.0.0.1:8000");'


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model whose experts have some MB, and a Python that has a vLLM of a kind."""
    folder = tmp_path_factory.mktemp("place")
    checkpoints.gemma(folder / "model")
    large = checkpoints.tensor((8, 1024, 768))
    checkpoints.rewrite(folder / "model", {"model.language_model.layers.0.experts.gate_up_proj": large})
    package = folder / "packages"
    (package / "vllm/entrypoints/cli").mkdir(parents=True)
    for name in ("vllm", "vllm/entrypoints", "vllm/entrypoints/cli"):
        (package / name / "__init__.py").touch()
    (package / "vllm/entrypoints/cli/main.py").write_text(_FAKE)
    (package / "vllm-0.32.0.dist-info").mkdir()
    (package / "vllm-0.32.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    return folder


@pytest.fixture
def start(place):
    """Start `tq serve`, the fake doing what `code` says; it is in a session of its own, as from a terminal."""
    running: list[subprocess.Popen[bytes]] = []

    def run(code: str, *arguments: str, stdout=subprocess.PIPE) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("TQ_", "VLLM_"))}
        path = os.pathsep.join([str(place / "packages"), environment.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", _MAIN, "serve", "model", "--offload-experts", "0.01", *arguments]
        running.append(
            subprocess.Popen(
                command,
                env=environment | {"PYTHONPATH": path, "FAKE_VLLM": code},
                cwd=place,
                stdout=stdout,
                stderr=subprocess.PIPE,
                start_new_session=True,
                # What comes after a line stays in the pipe.
                bufsize=0,
            )
        )
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.wait()


def lines_until(process: subprocess.Popen[bytes], wanted: bytes) -> list[bytes]:
    found = []
    for line in process.stdout:
        found.append(line.rstrip(b"\n"))
        if wanted in line:
            return found
    raise AssertionError(f"{wanted!r} is not among {found}: {process.stderr.read()!r}")


def test_what_goes_through(start):
    code = OFFLOADS + READY + 'say("é" * 5); say("no end", sys.stderr, end=""); say("nor here", end=""); sys.exit(7)'
    out, err = start(code, "--", "-tp", "2").communicate(timeout=60)
    shown, _, passed = out.decode().partition("starts   ")
    assert "engine   vllm" in shown
    command, arguments, *lines = passed.splitlines()
    offload = "--offload-backend uva --cpu-offload-gb 0.0093 --cpu-offload-params experts -tp 2"
    assert command.endswith(offload)
    assert arguments.endswith('"' + '", "'.join(offload.split()) + '"]')
    assert lines == [OFFLOADS[5:-3], READY[5:-3], "é" * 5, "nor here"]
    assert err == b"no end"


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 1, 7])
def test_its_exit_status(start, status):
    process = start(f"sys.exit({status})")
    process.communicate(timeout=60)
    assert process.returncode == status


def test_it_dies_of_a_signal(start):
    process = start("os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_handed_on(start, number):
    code = f"""
signal.signal({int(number)}, lambda *_: (say("caught"), sys.exit(5)))
say("waiting")
time.sleep(60)
"""
    process = start(code)
    lines_until(process, b"waiting")
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert out == b"caught\n"
    assert process.returncode == 5


def test_pieces_go_out_at_once(start):
    process = start('say("50 %", end=""); time.sleep(60)')
    lines_until(process, b'"experts"')
    assert os.read(process.stdout.fileno(), 100) == b"50 %"
    process.terminate()


def test_a_server_that_does_not_offload_is_stopped(start):
    process = start(READY + "time.sleep(60)")
    out, err = process.communicate(timeout=50)
    assert process.returncode == 3
    assert b"error: vLLM did not offload the experts" in err
    # It was asked, and its last words went through.
    assert out.endswith(b"leaving\n")


def test_one_that_will_not_be_stopped_is_ended(monkeypatch):
    """Its children too. The time that it is given is cut short."""
    monkeypatch.setattr(passing, "_GRACE", 0.2)
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("Starting vLLM server on x", flush=True)
time.sleep(60)
"""
    with pytest.raises(MachineError, match="did not offload"):
        passing.run_watched((sys.executable, "-c", code), os.environ, OffloadWatch())


@pytest.mark.parametrize(("first", "second"), [("stderr", "stdout"), ("stdout", "stderr")])
def test_the_order_of_two_streams_says_nothing(monkeypatch, capfd, first, second):
    """What shows that it offloads may be read after the line that says it is ready, from the other stream."""
    monkeypatch.setattr(passing, "_PIECE", 16)
    code = f"""
import sys
print("x" * 400, "Total CPU offloaded parameters: 1.0", file=sys.{first}, flush=True)
print("Starting vLLM server on x", file=sys.{second}, flush=True)
"""
    assert passing.run_watched((sys.executable, "-c", code), os.environ, OffloadWatch()) == 0
    assert sorted(map(len, capfd.readouterr())) == [26, 437]


def test_a_reader_that_leaves(start):
    """As without us: who writes to nobody ends."""
    code = (
        OFFLOADS
        + READY
        + """
for i in range(10**6):
    say("x" * 1000)
"""
    )
    process = start(code)
    lines_until(process, b"Starting")
    process.stdout.close()
    process.stderr.read()
    assert process.wait(timeout=60) == 1
