"""vLLM with the compressed cache answers as vLLM does whose keys and values were packed and unpacked before it wrote.

To the last bit, logprobs included: what is unpacked is the same, and vLLM's own kernel attends to it. Prompts come in
chunks of 64 tokens, in a cache so small that sequences are put off and begun anew, and once more with their beginnings
in the prefix cache; what is unpacked at a time is the least that can be.
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
    sizes = {"gemma4": (256, 512), "gemma4_padded": (64, 128)}
    if name in sizes:
        vllm_kv.save_gemma4(folder, *sizes[name])
    else:
        vllm_kv.save_qwen3(folder)
    return folder


# The last has pages that do not divide each other, and are filled up.
@pytest.mark.parametrize(
    ("model", "kv", "dtype", "blocks"),
    [
        ("qwen3", "k4v3", "float32", 17),
        ("qwen3", "k8v2", "bfloat16", 17),
        ("gemma4", "k3v4", "float32", 28),
        ("gemma4_padded", "k5v6", "bfloat16", 28),
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
