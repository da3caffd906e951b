"""The command for vLLM, and what is refused because vLLM would ignore it, or end badly."""

import sys
from dataclasses import replace

import pytest

from tqcli.errors import InputError
from tqcli.serving.choice import Choice, Engine
from tqcli.serving.subject import Subject
from tqcli.serving.vllm_command import Wanted, vllm_command

QWEN = {"model_type": "qwen3", "hidden_act": "silu", "head_dim": 128}
GEMMA = {"model_type": "gemma4", "text_config": {
    "layer_types": ["sliding_attention", "full_attention"], "num_experts": 128,
    "hidden_activation": "gelu_pytorch_tanh"}}  # fmt: skip
WANTED = Wanted("127.0.0.1", 8000, "out")


def subject(config=None, layout: str = "plain", **more) -> Subject:
    return replace(Subject("out", None, layout, config or QWEN, 1, 100, 0), **more)


def arguments(of: Subject | None = None, device: str = "cuda", **wanted) -> list[str]:
    made = vllm_command(of or subject(), replace(WANTED, **wanted), Choice(Engine.vllm, "", device))
    return list(made.arguments)


def refusal(of: Subject | None = None, device: str = "cuda", **wanted) -> str:
    with pytest.raises(InputError) as caught:
        arguments(of, device, **wanted)
    return str(caught.value)


def test_everything_is_said():
    found = arguments(subject(revision="v2"), name="m", kv="fp8", max_model_len=4096, flags=("-tp", "2", "--x={}"))
    assert found == [
        "serve", "out", "--host", "127.0.0.1", "--port", "8000", "--served-model-name", "m", "--revision", "v2",
        "--max-model-len", "4096", "--kv-cache-dtype", "fp8", "-tp", "2", "--x={}",
    ]  # fmt: skip


def test_the_key_is_not_an_argument():
    made = vllm_command(subject(), replace(WANTED, api_key="secret"), Choice(Engine.vllm, "", "cuda"))
    assert "secret" not in " ".join(made.program)
    assert made.environment == {"VLLM_API_KEY": "secret"}
    assert made.program[:3] == (sys.executable, "-m", "vllm.entrypoints.cli.main")


@pytest.mark.parametrize(
    ("kv", "device", "cache"),
    [
        ("none", "cuda", None), ("none", "cpu", None), ("fp8", "cuda", "fp8"), ("fp8", "cpu", "fp8"),
        ("k8v4", "cuda", "turboquant_k8v4"), ("k4v4", "cuda", "turboquant_4bit_nc"),
        ("k3v4", "cuda", "turboquant_k3v4_nc"), ("k3v3", "cuda", "turboquant_3bit_nc"),
    ],
)  # fmt: skip
def test_caches(kv, device, cache):
    found = arguments(kv=kv, device=device)
    assert found[found.index("--kv-cache-dtype") + 1 :] == [cache] if cache else "--kv-cache-dtype" not in found


@pytest.mark.parametrize("kv", ["k4v3", "k8v8"])
def test_caches_that_vllm_has_not_on_a_gpu(kv):
    assert "on GPUs vLLM has" in refusal(kv=kv)


@pytest.mark.parametrize("kv", ["k4v3", "k8v4", "k2v8"])
@pytest.mark.parametrize("config", [QWEN, GEMMA], ids=["qwen", "gemma"])
def test_on_cpus_the_cache_is_ours(kv, config):
    made = vllm_command(subject(config), replace(WANTED, kv=kv), Choice(Engine.vllm, "", "cpu"))
    assert made.environment == {"TQ_KV": kv}
    assert not any("kv-cache" in argument for argument in made.arguments)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kv", ["int8", "", "k1v4", "k4v9"])
def test_no_caches_at_all(kv, device):
    assert f"`--kv {kv}`" in refusal(kv=kv, device=device)


def test_packed_experts_are_run_eagerly_on_gpus():
    packed = subject(GEMMA, "native")
    assert arguments(packed)[-1] == "--enforce-eager"
    assert arguments(packed, flags=("--enforce-eager",)).count("--enforce-eager") == 1
    for of, device in ((packed, "cpu"), (subject(GEMMA), "cuda"), (subject(layout="native"), "cuda")):
        assert "--enforce-eager" not in arguments(of, device)


def test_activations_of_packed_weights_on_cpus():
    packed = subject(layout="native")
    wanted = replace(WANTED, activations="int8", api_key="secret")
    made = vllm_command(packed, wanted, Choice(Engine.vllm, "", "cpu"))
    assert made.environment == {"VLLM_API_KEY": "secret", "TQ_ACTIVATIONS": "int8"}
    assert made.shown_environment == {"VLLM_API_KEY": "...", "TQ_ACTIVATIONS": "int8"}
    assert "int9" in refusal(packed, "cpu", activations="int9")
    assert "on a GPU" in refusal(packed, "cuda", activations="int8")
    assert "no packed weights" in refusal(subject(), "cpu", activations="int8")


@pytest.mark.parametrize(
    ("of", "wanted"), [(subject(layout="native"), WANTED), (subject(), replace(WANTED, kv="k4v3"))]
)
def test_a_plug_in_that_is_kept_out(of, wanted):
    choice = Choice(Engine.vllm, "", "cpu")
    with pytest.raises(InputError, match="keeps out"):
        vllm_command(of, wanted, choice, {"VLLM_PLUGINS": "other"})
    assert vllm_command(of, wanted, choice, {"VLLM_PLUGINS": "other,tq"})
    assert vllm_command(subject(), WANTED, choice, {"VLLM_PLUGINS": "other"})


@pytest.mark.parametrize(
    "wanted",
    [{"flags": ("--kv-cache-dtype", "turboquant_k8v4")}, {"flags": ("--kv_cache_dtype=int4",)},
     {"flags": ("--kv-cache-dtype", "int8_per_token_head")}],
)  # fmt: skip
def test_on_cpu_all_but_fp8_would_be_ignored_and_then_crash(wanted):
    assert "crashes when the cache is full" in refusal(device="cpu", **wanted)


@pytest.mark.parametrize("wanted", [{"kv": "k8v4"}, {"flags": ("--kv-cache-dtype=turboquant_3bit_nc",)}])
@pytest.mark.parametrize(
    "config",
    [GEMMA, QWEN | {"sliding_window": 4096}, QWEN | {"global_head_dim": 512, "head_dim": 256}],
    ids=["gemma", "mistral", "heads"],
)
def test_uneven_attention_has_no_turboquant(wanted, config):
    assert "does not support" in refusal(subject(config), **wanted)
    assert arguments(subject(config), kv="fp8")
    assert arguments(subject(config), flags=("--kv-cache-dtype", "fp8"))


def test_a_window_that_is_switched_off_is_none():
    assert arguments(subject(QWEN | {"sliding_window": 4096, "use_sliding_window": False}), kv="k8v4")


@pytest.mark.parametrize(
    "flag",
    [
        "--host",
        "--port=1",
        "--api-key",
        "--api_key=x",
        "--served-model-name",
        "--max_model_len",
        "--revision",
        "--model",
    ],
)
def test_flags_that_tq_has_itself(flag):
    assert "after `--`" in refusal(flags=(flag,))


def test_the_same_thing_twice():
    assert "twice" in refusal(kv="fp8", flags=("--kv-cache-dtype", "fp8"))


@pytest.mark.parametrize("flag", ["--cpu-offload-gb", "--cpu_offload_gb=1", "--offload-backend=uva"])
def test_offloading_to_where_it_is(flag):
    assert "does nothing" in refusal(device="cpu", flags=(flag,))
    assert arguments(flags=(flag,))


@pytest.mark.parametrize(
    "flags",
    [("--pipeline-parallel-size", "2"), ("-pp=2",), ("--pipeline_parallel_size=4",),
     ("--distributed-executor-backend", "ray")],
)  # fmt: skip
def test_what_cpus_have_not(flags):
    assert "does not work in vLLM on CPU" in refusal(device="cpu", flags=flags)
    assert arguments(flags=flags)
    assert arguments(device="cpu", flags=("-pp", "1", "--distributed-executor-backend", "mp", "-tp", "2"))


FP8 = {"config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}}}
BLOCKS = {"config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8, "strategy": "block"}}}}


def test_compressed_experts_without_a_kernel():
    qwen = QWEN | {"num_experts": 8}
    gemma = subject(GEMMA, "compressed_tensors")
    assert "SiLU" in refusal(gemma, "cpu")
    assert "FP8 experts" in refusal(subject(qwen | {"quantization_config": FP8}, "compressed_tensors"), "cpu")
    assert arguments(subject(qwen | {"quantization_config": BLOCKS}, "compressed_tensors"), "cpu")
    assert arguments(subject(QWEN | {"quantization_config": FP8}, "compressed_tensors"), "cpu")
    assert arguments(gemma)
    assert arguments(subject(GEMMA), "cpu")
