"""Models whose greedy answers tell caches apart, and vLLM's answers with one cache or another."""

import json
import os
import random
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support import tiny_models

ROOT = Path(__file__).resolve().parents[2]
VLLM = ROOT / os.environ.get("TQ_VLLM_ENV", ".venv-vllm") / "bin" / "python"
# One thread: the order of sums is then that of the kernel alone.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}  # fmt: skip
_BASE = {
    "vocab_size": tiny_models.VOCABULARY, "max_position_embeddings": 1024, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 2, "dtype": "bfloat16",
}  # fmt: skip


def save_qwen3(folder: Path) -> None:
    """Eight heads that share four keys and values."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=128, intermediate_size=160, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
        head_dim=64, tie_word_embeddings=False, **_BASE,
    )  # fmt: skip
    _save(Qwen3ForCausalLM(config), folder)


def save_gemma4(folder: Path, head_size: int, global_head_size: int, shared_layers: int = 0) -> None:
    """Sliding windows and, with keys that are values and fewer heads of another size, full layers.

    shared_layers: so many of the last read the cache of those before them, and the above is not so.
    """
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    config = Gemma4TextConfig(
        vocab_size_per_layer_input=tiny_models.VOCABULARY, hidden_size=128, intermediate_size=160, num_hidden_layers=6,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=head_size, global_head_dim=global_head_size,
        num_global_key_value_heads=None if shared_layers else 1, attention_k_eq_v=not shared_layers,
        num_kv_shared_layers=shared_layers, hidden_size_per_layer_input=32 if shared_layers else 0, sliding_window=64,
        final_logit_softcapping=30.0, tie_word_embeddings=True, **_BASE,
    )  # fmt: skip
    _save(Gemma4ForCausalLM(config), folder)


def _save(model: Any, folder: Path) -> None:
    tiny_models.randomise(model, seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that attention decides which token comes next.
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(1.6 * parameter.shape[1] ** -0.5 / 0.08)
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_models.save_tokenizer(folder)


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(8, tiny_models.VOCABULARY) for _ in range(length)] for length in lengths]


@dataclass(frozen=True)
class Answers:
    """rounds: of calls, of prompts: tokens, their logprobs, and how many of the prompt's were found in the cache.

    capacity: tokens that the cache holds, as vLLM says.
    """

    rounds: list[list[dict[str, Any]]]
    preemptions: int
    capacity: int

    @property
    def tokens(self) -> list[list[int]]:
        return [one["tokens"] for each in self.rounds for one in each]

    @property
    def logprobs(self) -> list[list[float]]:
        return [one["logprobs"] for each in self.rounds for one in each]


def answers(
    model: Path, cache: str, kv: str, rounds: list[list[list[int]]], *, new_tokens: int = 40, part_bytes: int = 0,
    environment: dict[str, str] | None = None, **options: Any,
) -> Answers:  # fmt: skip
    """options: of vLLM's `LLM`."""
    asked = {
        "model": str(model), "cache": cache, "kv": kv, "rounds": rounds, "new_tokens": new_tokens,
        "part_bytes": part_bytes, "options": options,
    }  # fmt: skip
    done = start(asked, {"TQ_KV": kv if cache == "compressed" else "none"} | (environment or {}))
    assert done.returncode == 0, done.stdout[-6000:]
    found = json.loads(done.stdout.split("ANSWERS ", 1)[1].splitlines()[0])
    capacity = re.search(r"KV cache size: ([\d,]+) tokens", done.stdout)
    assert capacity
    return Answers(found["answers"], found["preemptions"], int(capacity[1].replace(",", "")))


def start(asked: dict[str, Any], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("vllm_kv_process.py")
    return run([str(VLLM), str(script), json.dumps(asked)], environment)


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | ENVIRONMENT | environment, timeout=600, check=False,
    )  # fmt: skip
