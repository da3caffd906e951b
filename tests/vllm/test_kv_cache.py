"""vLLM with the compressed cache answers as vLLM does whose keys and values were packed and unpacked before it wrote.

To the last bit, logprobs included: what is unpacked is the same, and vLLM's own kernel attends to it. Prompts come in
chunks of 64 tokens, in a cache so small that sequences are put off and begun anew, and once more with their beginnings
in the prefix cache; what is unpacked at a time is the least that can be. Models are such that blocks hold as many
tokens in both caches: otherwise other sequences would be computed together, and matrix products round otherwise.
"""

import pytest
from support import vllm_kv
from support.vllm_kv import VLLM, answers, prompts

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM.exists(), reason="no .venv-vllm; tests/peers/test_vllm.py tells how it is made"),
]
FIRST = prompts([5, 37, 130, 200, 64, 300])
# The same beginnings: whole blocks of them are in the cache.
AGAIN = [prompt + more for prompt, more in zip(FIRST[:1:-1], prompts([1, 33, 70, 9], seed=1), strict=True)]
OPTIONS = {"max_model_len": 448, "max_num_batched_tokens": 64, "max_num_seqs": 4, "block_size": 32}


def saved(folder, name):
    sizes = {"gemma4": (256, 512), "gemma4_padded": (64, 128), "gemma4_shared": (256, 512, 3)}
    if name in sizes:
        vllm_kv.save_gemma4(folder, *sizes[name])
    else:
        vllm_kv.save_qwen3(folder)
    return folder


# The padded one has pages that do not divide each other; half the layers of the shared one read another's cache.
@pytest.mark.parametrize(
    ("model", "kv", "dtype", "blocks"),
    [
        ("qwen3", "k4v3", "float32", 17),
        ("qwen3", "k8v2", "bfloat16", 17),
        ("gemma4", "k3v4", "float32", 28),
        ("gemma4_padded", "k5v6", "bfloat16", 28),
        ("gemma4_shared", "k4v4", "float16", 28),
    ],
)
def test_answers_are_those_of_packed_and_unpacked_keys_and_values(model, kv, dtype, blocks, tmp_path):
    folder = saved(tmp_path / model, model)
    options = OPTIONS | {"dtype": dtype, "num_gpu_blocks_override": blocks, "new_tokens": 100}
    wanted = answers(folder, "reference", kv, [FIRST, AGAIN], **options)
    found = answers(folder, "compressed", kv, [FIRST, AGAIN], part_bytes=1, **options)
    plain = answers(folder, "plain", kv, [FIRST, AGAIN], **options)
    assert found.tokens == wanted.tokens
    assert found.logprobs == wanted.logprobs
    # Otherwise the above would show little.
    assert all(len(set(tokens)) > 10 for tokens in plain.tokens)
    assert sum(one != other for one, other in zip(plain.tokens, found.tokens, strict=True)) > 3
    assert found.preemptions
    assert any(one["cached"] for one in found.rounds[1])


def test_two_processes_that_share_the_heads(tmp_path):
    """Each has its own part of every page. The order of sums is another there, so that logprobs are only near."""
    folder = saved(tmp_path / "qwen3", "qwen3")
    options = {"dtype": "float32", "max_model_len": 512, "new_tokens": 12}
    alone = answers(folder, "compressed", "k8v8", [FIRST], **options)
    both = answers(
        folder, "compressed", "k8v8", [FIRST], tensor_parallel_size=2,
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, **options,
    )  # fmt: skip
    assert both.tokens == alone.tokens
    for one, other in zip(both.logprobs, alone.logprobs, strict=True):
        assert one == pytest.approx(other, abs=2e-2)


def test_the_cache_holds_as_many_tokens_as_its_bytes_say(tmp_path):
    """bfloat16 takes 256 bytes of a head of 64, k4v3 60; of Gemma 4's heads of 256, 228 bytes instead of 1024."""
    for name, most in (("qwen3", 256 / 60), ("gemma4", 1024 / 228)):
        folder = saved(tmp_path / name, name)
        options = {"dtype": "bfloat16", "max_model_len": 512, "new_tokens": 1}
        plain = answers(folder, "plain", "k4v3", [FIRST[:1]], **options)
        found = answers(folder, "compressed", "k4v3", [FIRST[:1]], **options)
        assert found.capacity / plain.capacity == pytest.approx(most, rel=0.01)


@pytest.mark.parametrize(
    ("kv", "options", "reason"),
    [
        ("k4v9", {}, "`TQ_KV=k4v9` is no key-value cache"),
        ("k4v3", {"kv_cache_dtype": "fp8"}, "does not work with --kv-cache-dtype fp8"),
    ],
)
def test_the_start_ends_with_a_reason(kv, options, reason, tmp_path):
    folder = saved(tmp_path / "qwen3", "qwen3")
    asked = {"model": str(folder), "cache": "plain", "part_bytes": 0, "new_tokens": 1, "rounds": []}
    done = vllm_kv.start(asked | {"options": {"dtype": "float32"} | options}, {"TQ_KV": kv})
    assert done.returncode
    assert reason in done.stdout
    assert "fix: " in done.stdout


def test_latent_attention_is_refused():
    """By the two backends that vLLM has for it on CPUs, which would otherwise go on uncompressed."""
    code = """
from tqcli.errors import InputError
from tqcli.runtime.vllm.kv.register import register
from vllm.v1.attention.backends.registry import AttentionBackendEnum
register()
for name in ("CPU_MLA", "AMX_MLA"):
    backend = AttentionBackendEnum[name].get_class()
    for ask in (backend.get_impl_cls, backend.get_name):
        try:
            print("taken", ask())
        except InputError as error:
            print("refused", error.what)
"""
    done = vllm_kv.run([str(VLLM), "-c", code], {"TQ_KV": "k4v3"})
    assert done.stdout.count("refused the compressed key-value cache does not work with latent attention") == 4
    assert "taken" not in done.stdout
