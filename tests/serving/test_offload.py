"""`--offload-experts`: what vLLM is told, what would do nothing, and what its log has to say."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import checkpoints

from tqcli.errors import InputError
from tqcli.serving.choice import Choice, Engine
from tqcli.serving.offload import OffloadWatch, check_embedded, offload_arguments, run_offloading
from tqcli.serving.subject import Subject, open_subject
from tqcli.serving.vllm_command import Wanted, vllm_command

VLLM = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
MODEL = Subject("out", None, "plain", {"num_experts": 8}, 1, 60 * 10**9, 0, expert_bytes=45_640_000_000)
OFFLOADED = b"(EngineCore pid=7) INFO 11-25 16:20:01 [uva.py:82] Total CPU offloaded parameters: 9.31\n"
READY = b"(APIServer pid=5) INFO 11-25 16:20:09 [entry.py:140] Starting vLLM server on http://127.0.0.1:8000\n"


def refusal(model: Subject = MODEL, gigabytes: float = 10, device: str = "cuda") -> str:
    with pytest.raises(InputError) as caught:
        offload_arguments(model, gigabytes, device)
    return str(caught.value)


def test_what_vllm_calls_gb_are_powers_of_two():
    flags = offload_arguments(MODEL, 10, "cuda")
    assert flags == ["--offload-backend", "uva", "--cpu-offload-gb", "9.3132", "--cpu-offload-params", "experts"]
    assert offload_arguments(MODEL, 0.01, "cuda")[3] == "0.0093"


@pytest.mark.parametrize("gigabytes", [0, -1, 0.004, float("nan"), float("inf")])
def test_no_size(gigabytes):
    assert "is no size" in refusal(gigabytes=gigabytes)


def test_what_would_do_nothing():
    assert "on CPU" in refusal(device="cpu")
    assert "no experts" in refusal(replace(MODEL, expert_bytes=0))
    assert "packed weights" in refusal(replace(MODEL, layout="native"))
    with pytest.raises(InputError, match="embedded engine"):
        check_embedded(10)
    check_embedded(None)


def test_more_than_there_is():
    assert "45.64 GB" in refusal(gigabytes=45.65)
    assert "--offload-experts 45.64, or less" in refusal(gigabytes=100)
    assert offload_arguments(MODEL, 45.64, "cuda")


def test_in_the_command_line():
    wanted = Wanted("127.0.0.1", 8000, "out", offload_experts=10)
    made = vllm_command(MODEL, wanted, Choice(Engine.vllm, "", "cuda"))
    assert made.arguments[-6:] == tuple(offload_arguments(MODEL, 10, "cuda"))
    for flag in ("--cpu-offload-gb", "--cpu_offload_params=x", "--offload-backend=uva"):
        with pytest.raises(InputError, match="twice"):
            vllm_command(MODEL, replace(wanted, flags=(flag,)), Choice(Engine.vllm, "", "cuda"))


def test_packed_weights_come_too_late():
    """vLLM would say that it offloads, and then have all experts on the GPU."""
    wanted = Wanted("127.0.0.1", 8000, "out", offload_experts=10)
    choice = Choice(Engine.vllm, "", "cuda")
    for flags in (("--quantization", "tq"), ("--quantization=turboquant",), ("-q", "tq")):
        with pytest.raises(InputError, match="packed weights"):
            vllm_command(MODEL, replace(wanted, flags=flags), choice)
        assert vllm_command(MODEL, replace(wanted, flags=flags, offload_experts=None), choice)
    assert vllm_command(MODEL, replace(wanted, flags=("--quantization", "fp8")), choice)
    with pytest.raises(InputError, match="`--cpu-offload-gb` does not work with packed weights"):
        packed = replace(wanted, flags=("--cpu-offload-gb", "1"), offload_experts=None)
        vllm_command(replace(MODEL, layout="native"), packed, choice)


def test_bytes_of_experts(here):
    for name, make in (("gemma", checkpoints.gemma), ("qwen", checkpoints.qwen)):
        make(here / name)
        data = checkpoints.read_file(here / name / "model.safetensors") if name == "gemma" else {}
        found = open_subject(name).expert_bytes
        assert found
        if data:
            assert found == sum(len(raw) for key, (_, _, raw) in data.items() if ".experts." in key)


@pytest.mark.parametrize(
    "hidden", [{"VLLM_LOGGING_LEVEL": "WARNING"}, {"VLLM_CONFIGURE_LOGGING": "0"}, {"VLLM_LOGGING_CONFIG_PATH": "x"}]
)
def test_a_log_that_would_not_tell(hidden):
    with pytest.raises(InputError, match="could not be checked"):
        run_offloading((sys.executable, "-c", "raise SystemExit(1)"), hidden)


@given(st.lists(st.sampled_from([OFFLOADED, READY, b"INFO: something else\n", b""]), max_size=6))
def test_the_watch(lines):
    watch = OffloadWatch()
    for line in lines:
        watch.see(line)
    assert watch.amiss == (READY in lines and OFFLOADED not in lines)


# The names that vLLM's offloader sees. Kernels for INT4 experts are for GPUs, so loading stops before it asks for them.
NAMES = """
import importlib, json, sys
import vllm.model_executor.layers.fused_moe.oracle.int_wna16 as oracle
import vllm.model_executor.model_loader.base_loader as loader
from vllm import LLM
from vllm.model_executor.models import utils
package = "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe"
moe = importlib.import_module(package + ".compressed_tensors_moe_wna16")
moe.select_wna16_moe_backend = lambda **_: (oracle.WNA16MoEBackend.TRITON, None)
class Stop(Exception): pass
def stop(model, *_):
    layer = model.get_submodule(sys.argv[2])
    print("NAMES", json.dumps([name for name, _ in layer.named_parameters()]))
    raise Stop
loader.process_weights_after_loading = stop
try:
    LLM(sys.argv[1], enforce_eager=True, max_model_len=64, dtype="bfloat16", load_format="dummy")
except Stop:
    pass
"""


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(not VLLM.exists(), reason="no .venv-vllm")
@pytest.mark.parametrize("recipe", [None, "int4"])
def test_experts_are_what_vllm_calls_experts(tmp_path, recipe):
    """Plain and quantised: each routed expert's parameter has the part that is matched, and nothing else has."""
    from support import tiny_models
    from support.command import succeed

    (tmp_path / "model").mkdir()
    tiny_models.qwen3_moe(tmp_path / "model")
    folder = tmp_path / "model"
    if recipe:
        folder = tmp_path / "out"
        (tmp_path / "r.toml").write_text('format = "int4"\ngroup_size = 32\n')
        succeed("convert", tmp_path / "model", folder, "--recipe", tmp_path / "r.toml")
    environment = {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    ran = subprocess.run(
        [VLLM, "-c", NAMES, str(folder), "model.layers.0"], env=environment, capture_output=True, text=True, timeout=300
    )
    said = next((line for line in ran.stdout.splitlines() if line.startswith("NAMES")), None)
    assert said, ran.stderr[-3000:]
    names = json.loads(said.removeprefix("NAMES"))
    matched = [name for name in names if ".experts." in f".{name}."]
    assert matched == [name for name in names if "w13_" in name or "w2_" in name]
    assert len(matched) >= (4 if recipe else 2)
