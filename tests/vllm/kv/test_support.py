"""What is said to a person before vLLM starts: a cache that would be ignored, or wrong, is refused; others are not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqcli.runtime.vllm.kv.support import Start, refusal, start

QWEN3 = {"model_type": "qwen3", "head_dim": 128, "hidden_size": 2560, "num_attention_heads": 32}
QWEN3_PLAIN = QWEN3 | {"sliding_window": 4096, "use_sliding_window": False, "layer_types": ["full_attention"] * 3}
GEMMA4 = json.loads((Path(__file__).parents[2] / "fixtures" / "tiny_gemma4" / "config.json").read_text())["text_config"]
GEMMA4_LARGE = GEMMA4 | {"head_dim": 256, "global_head_dim": 512}


@pytest.mark.parametrize("config", [QWEN3, QWEN3_PLAIN, GEMMA4, GEMMA4_LARGE])
@given(keys=st.integers(2, 8), values=st.integers(2, 8))
def test_on_a_cpu_every_width_is_served(config, keys, values):
    assert refusal(config, f"k{keys}v{values}", "cpu") == ""
    assert start(f"k{keys}v{values}", "cpu") == Start((), {"TQ_KV": f"k{keys}v{values}"})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("kv", "told"), [("none", Start()), ("fp8", Start(("--kv-cache-dtype", "fp8")))])
def test_vllm_s_own_are_left_to_it(kv, told, device):
    assert refusal(GEMMA4, kv, device) == ""
    assert start(kv, device) == told


@pytest.mark.parametrize(
    ("kv", "flag"),
    [("k8v4", "turboquant_k8v4"), ("k4v4", "turboquant_4bit_nc"), ("k3v4", "turboquant_k3v4_nc"),
     ("k3v3", "turboquant_3bit_nc")],
)  # fmt: skip
def test_on_a_gpu_four_widths_of_models_whose_layers_are_alike(kv, flag):
    assert refusal(QWEN3, kv, "cuda") == ""
    assert refusal(QWEN3_PLAIN, kv, "cuda") == ""
    assert start(kv, "cuda") == Start(("--kv-cache-dtype", flag))
    for changed, reason in (
        (GEMMA4, "layers with a sliding window"),
        (QWEN3 | {"sliding_window": 4096}, "a sliding window"),
        (QWEN3 | {"global_head_dim": 512}, "heads of unequal sizes"),
        (QWEN3 | {"kv_lora_rank": 512}, "latent attention"),
    ):
        assert reason in refusal(changed, kv, "cuda")


def test_what_a_gpu_has_no_type_for():
    assert refusal(QWEN3, "k4v3", "cuda") == "on GPUs vLLM has k8v4, k4v4, k3v4, k3v3 and fp8, not k4v3"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"is_encoder_decoder": True}, "an encoder"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of kind `linear_attention`"),
        ({"layer_types": ["chunked_attention"]}, "layers of kind `chunked_attention`"),
        ({"model_type": "gpt_oss"}, "attention sinks"),
        ({"model_type": "bloom"}, "slopes"),
        ({"alibi": True}, "slopes"),
        ({"head_dim": 72}, "heads of 72 numbers cannot be compressed: the largest power of two"),
        ({"global_head_dim": 100}, "heads of 100 numbers"),
        ({"head_dim": None, "hidden_size": 720, "num_attention_heads": 10}, "heads of 72 numbers"),
    ],
)
def test_models_that_the_cache_is_not_for(changed, reason):
    assert reason in refusal(QWEN3 | changed, "k4v3", "cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kv", ["k9v4", "k1v3", "q4", "", "k4v3 ", "turboquant_k8v4"])
def test_what_is_no_cache(kv, device):
    reason = refusal(QWEN3, kv, device)
    assert reason
    assert "\n" not in reason


@given(
    config=st.dictionaries(
        st.sampled_from(sorted(GEMMA4_LARGE)), st.none() | st.text() | st.integers() | st.lists(st.none())
    )
)
def test_any_configuration_gets_an_answer(config):
    for device in ("cpu", "cuda"):
        assert isinstance(refusal(config, "k4v3", device), str)


def test_a_command_line_need_not_wait_for_torch():
    code = "import sys, tqcli.runtime.vllm.kv.support; print('torch' in sys.modules, 'vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
