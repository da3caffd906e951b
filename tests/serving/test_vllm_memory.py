"""Memory that vLLM gets on a CPU: weights, the cache of a context, half of the rest."""

from dataclasses import replace

import pytest

from tqcli.errors import MachineError
from tqcli.serving.subject import Subject
from tqcli.serving.vllm_command import Wanted
from tqcli.serving.vllm_memory import WORKING_BYTES, plan_vllm_memory

GB = 10**9
QWEN = {
    "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA = {
    "model_type": "gemma4_text", "num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "global_head_dim": 512,
    "num_global_key_value_heads": 2, "attention_k_eq_v": True, "sliding_window": 1024, "hidden_size": 2816,
    "max_position_embeddings": 262144, "torch_dtype": "bfloat16",
}  # fmt: skip
WANTED = Wanted("127.0.0.1", 8000, "out")


def plan(config=None, free: int = 20 * GB, weights: int = 4 * GB, inherited=None, **wanted):
    subject = Subject("out", None, "native", config or QWEN, 1, weights, 0)
    return plan_vllm_memory(subject, replace(WANTED, **wanted), inherited or {}, free)


def test_half_of_what_the_weights_leave():
    found = plan()
    assert found.room == (20 * GB - 4 * GB - WORKING_BYTES) // 2
    assert found.context == 32768
    assert found.arguments == ("--kv-cache-memory-bytes", str(found.room // 2**20 * 2**20))


# Of a token and layer, as vLLM lays them out: 8 heads of 128, and Gemma 4's 2 of 512 (its sliding ones have a window).
@pytest.mark.parametrize(
    ("kv", "qwen", "gemma"),
    [("none", 4096, 4096), ("fp8", 2048, 2048), ("k8v4", 1568, 1552), ("k4v4", 1056, 1040), ("k4v3", 928, 912)],
)
def test_bytes_a_token(kv, qwen, gemma):
    assert plan(kv=kv).bytes_per_token == 4 * qwen
    assert plan(kv=kv).cache_bytes == 4 * qwen * 32768
    assert plan(GEMMA, kv=kv).bytes_per_token == gemma


def test_sliding_layers_stop_growing():
    found = plan(GEMMA, kv="k4v3", max_model_len=100_000)
    assert found.cache_bytes == 912 * 100_000 + 5 * 1824 * 1024
    assert plan(GEMMA, kv="k4v3", max_model_len=100).cache_bytes == (912 + 5 * 1824) * 100


def test_a_context_that_needs_more_than_half():
    left = 20 * GB - 4 * GB - WORKING_BYTES
    tokens = left * 3 // 4 // (4 * 4096)
    found = plan(max_model_len=tokens)
    assert found.room == found.cache_bytes == tokens * 4 * 4096 > left // 2


def test_ranks_share_it():
    for flags in (("--tensor-parallel-size", "2"), ("-tp=2",), ("--tensor_parallel_size=2",)):
        found = plan(flags=flags)
        assert found.ranks == 2
        assert int(found.arguments[1]) * 2 <= found.room
    assert plan(flags=("-tp", "many")).ranks == 1


def test_weights_that_are_compressed_late():
    assert plan(weights=16 * GB, flags=("--quantization", "tq")).weights == 8 * GB


@pytest.mark.parametrize("wanted", [{"weights": 30 * GB}, {"max_model_len": 10**7}])
def test_what_does_not_fit(wanted):
    with pytest.raises(MachineError, match="does not fit"):
        plan(**wanted)


@pytest.mark.parametrize("flag", ["--kv-cache-memory-bytes=5", "--gpu_memory_utilization=0.5"])
def test_the_user_says_it(flag):
    assert plan(flags=(flag,)) is None
    assert plan(inherited={"VLLM_CPU_KVCACHE_SPACE": "4"}) is None


def test_models_of_which_nothing_is_known():
    assert plan({"model_type": "a-new-one"}) is None
