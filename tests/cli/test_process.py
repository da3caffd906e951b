"""The command as a process: what it imports, its exit codes, signals, and readers that leave early."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tq_kernels
from support import checkpoints
from support.command import hashes, succeed

HEAVY = ("torch", "transformers", "huggingface_hub", "safetensors", "accelerate", "vllm", "fastapi", "uvicorn")
native = pytest.mark.skipif(tq_kernels.backend().name == "reference", reason="the reference kernels are torch")

_RUN = """
import json, sys
from tqcli.cli.main import main
try:
    main()
except SystemExit as error:
    code = error.code or 0
modules = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"code": code, "modules": modules}), file=sys.__stderr__)
"""


def start(*arguments: object, code: str = "from tqcli.cli.main import main; main()", **more) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TQ_")} | more.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=environment, **streams)


def run(*arguments: object, **more) -> tuple[int, str, str]:
    process = start(*arguments, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def imported(*arguments: object) -> tuple[int, set[str]]:
    _, _, err = run(*arguments, code=_RUN)
    report = json.loads(err.splitlines()[-1])
    return report["code"], set(report["modules"])


@pytest.fixture
def model(here) -> Path:
    return checkpoints.gemma(here / "model")


class TestImports:
    @pytest.mark.parametrize(
        "arguments", [("--help",), ("convert", "--help"), ("inspect", "--help"), ("serve", "--help"), ("--version",)]
    )
    def test_help_loads_nothing_large(self, arguments):
        code, modules = imported(*arguments)
        assert code == 0
        assert not modules & {*HEAVY, "numpy", "tq_kernels"}

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("convert", "model", "out", "--set", "bits=5"), 2),
            (("convert", "model", "--dry-run"), 0),
            (("inspect", "model"), 0),
            pytest.param(("convert", "model", "out"), 0, marks=native),
            pytest.param(("inspect", "model", "--verify", "--source", "model"), 0, marks=native),
        ],
    )
    def test_working_on_folders_needs_no_torch(self, model, arguments, expected):
        code, modules = imported(*arguments)
        assert code == expected
        assert not modules & set(HEAVY)
        assert "tqcli" in modules

    def test_the_package_itself(self):
        code = f"import sys, tqcli; print([name for name in {HEAVY!r} if name in sys.modules])"
        assert run(code=code)[1] == "[]\n"


class TestExitCodes:
    def test_a_bug_of_ours_is_70_with_a_traceback(self, model):
        code = (
            "import tqcli.job\n"
            "def broken(job): return 1 / 0\n"
            "tqcli.job.plan_job = broken\n"
            "from tqcli.cli.main import main; main()"
        )
        status, out, err = run("convert", "model", "out", code=code)
        assert status == 70
        assert out == ""
        assert "ZeroDivisionError" in err
        assert err.endswith("error: this is a bug in tq; please report it with the lines above\n")

    def test_a_mistake_has_a_traceback_only_on_demand(self, here):
        status, _, err = run("inspect", "nowhere")
        assert (status, "Traceback" in err) == (2, False)
        status, _, err = run("inspect", "nowhere", env={"TQ_DEBUG": "1"})
        assert (status, "Traceback" in err) == (2, True)
        assert err.endswith("error: `nowhere` is neither a folder nor a Hub id\n"
                            "  fix: name a folder that exists, or `owner/name`\n")  # fmt: skip

    def test_kernels_that_there_are_not(self, model):
        status, _, err = run("convert", "model", "out", env={"TQ_KERNELS": "quantum"})
        assert status == 3
        assert "error: the kernels cannot be used\n  why: `TQ_KERNELS=quantum` is not known" in err
        assert not Path("out").exists()


_SLOW = """
import time
from tqcli.checkpoint.writer import ShardWriter
append = ShardWriter.append
def slow(self, name, piece):
    time.sleep(0.05)
    append(self, name, piece)
ShardWriter.append = slow
from tqcli.cli.main import main; main()
"""


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(model):
    arguments = ("convert", "model", "out", "--shard-size", "60KB")
    process = start(*arguments, code=_SLOW)
    deadline = time.monotonic() + 60
    while not list(Path().glob("out/model-00003-*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("interrupted: finished shards are kept; the same command goes on from there\n")
    assert "Traceback" not in err
    assert not Path("out/config.json").exists()
    assert not list(Path("out").glob("*.partial"))
    finished = succeed(*arguments).stderr
    assert finished.count("kept from before") == 2
    succeed("convert", "model", "fresh", "--shard-size", "60KB")
    assert hashes(Path("out")) == hashes(Path("fresh"))


def test_a_terminal_gets_a_bar(model):
    """The bar is for standard error on a terminal; standard output stays as it is."""
    import pty

    above, below = pty.openpty()
    process = start("convert", "model", "out", code=_SLOW, stderr=below, env={"TERM": "xterm", "COLUMNS": "100"})
    os.close(below)
    drawn = b""
    try:
        while piece := os.read(above, 4096):
            drawn += piece
    except OSError:
        pass  # Linux says so when the other end is closed
    out, _ = process.communicate(timeout=60)
    os.close(above)
    assert process.returncode == 0, drawn
    assert "wrote    out" in out
    assert "MB/s" in drawn.decode() or "kB/s" in drawn.decode()
    assert b"written" not in drawn


class TestReadersThatLeave:
    def test_a_long_listing(self, here):
        tensors = {f"model.{'x' * 200}.{number}": checkpoints.tensor((1,)) for number in range(2000)}
        config = {"model_type": "llama", "num_hidden_layers": 1}
        checkpoints.write_checkpoint(here / "model", config, tensors)
        process = start("inspect", "model", "--names")
        assert process.stdout.readline().startswith("model.x")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0

    @pytest.mark.parametrize("form", ["human", "json", "quiet"])
    def test_a_conversion_is_finished_all_the_same(self, model, form):
        reading, writing = os.pipe()
        os.close(reading)
        status, _, err = run("convert", "model", "out", "--format", form, stdout=writing)
        os.close(writing)
        assert status == 0, err
        assert "Traceback" not in err
        assert "BrokenPipe" not in err
        assert Path("out/config.json").exists()
        assert not Path("out/.tq-journal.jsonl").exists()


def test_a_full_disk_below_standard_output(model):
    with Path("/dev/full").open("w") as full:
        status, _, err = run("inspect", "model", stdout=full)
    assert status == 3
    assert err.startswith("error: standard output cannot be written\n  why: ")


class TestStreams:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("convert", "model", "out"),
            ("convert", "model", "-n"),
            ("convert", "--recipes"),
            ("inspect", "model"),
            ("inspect", "model", "--names"),
            ("inspect", "model", "--tensors", "*"),
            ("inspect", "model", "--verify"),
            ("inspect", "model", "--diff", "model"),
        ],
    )
    def test_json_is_one_object_and_nothing_else(self, model, arguments):
        status, out, err = run(*arguments, "--format", "json")
        assert status == 0, err
        assert isinstance(json.loads(out), dict)

    @pytest.mark.parametrize(
        ("arguments", "lines"),
        [
            (("convert", "model", "out"), ["out"]),
            (("inspect", "model"), ["16.0000"]),
            (("inspect", "model", "--verify"), ["ok"]),
            (("inspect", "model", "--diff", "model"), ["0"]),
        ],
    )
    def test_quiet_is_one_value_and_nothing_else(self, model, arguments, lines):
        status, out, err = run(*arguments, "--format", "quiet")
        assert (status, err) == (0, "")
        assert out.splitlines() == lines

    @pytest.mark.parametrize("form", ["human", "json", "quiet"])
    def test_errors_go_to_standard_error_in_every_form(self, model, form):
        status, out, err = run("convert", "model", "out", "--set", "bits=5", "--format", form)
        assert status == 2
        assert out == ""
        assert err.startswith("error: --set: `bits` cannot be `5`\n")

    def test_a_terminal_without_unicode(self, here):
        checkpoints.write_checkpoint(
            here / "modèl", {"model_type": "llama"}, {"é.weight": checkpoints.tensor((4,))}, side_files={}
        )
        status, out, err = run("inspect", "modèl", "--names", env={"PYTHONIOENCODING": "ascii"})
        assert (status, out, err) == (0, "\\xe9.weight\n", "")


@native
@pytest.mark.slow
def test_memory_does_not_grow_with_the_tensor(here):
    """A matrix of 512 MB, sparse on the disk, within the memory that the plan announces."""
    config = {"model_type": "llama", "num_hidden_layers": 1}
    folder = checkpoints.write_checkpoint(here / "model", config, {}, side_files={})
    nbytes = 1 << 29
    entry = {"dtype": "F32", "shape": [8192, nbytes // 8192 // 4], "data_offsets": [0, nbytes]}
    text = json.dumps({"model.layers.0.mlp.up_proj.weight": entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + nbytes)
    measure = (
        "import sys\nfrom pathlib import Path\nfrom tqcli.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "from tqcli.job import Job, memory_needed, plan_job\n"
        # Not ru_maxrss, into which Linux counts the memory of the process that forked this one.
        "status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())\n"
        "needed = memory_needed(plan_job(Job('model', 'tq3')), 2)\n"
        "print(int(status['VmHWM'].split()[0]) * 1024, needed, file=sys.__stderr__)"
    )
    _, _, err = run("convert", "model", "out", "--workers", "2", code=measure)
    assert Path("out/config.json").exists(), err
    peak, announced = map(int, err.splitlines()[-1].split())
    assert peak < announced
