"""vLLM in its own environment, as a program: what it answers, what its layers hold, and how it refuses."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VLLM = ROOT / os.environ.get("TQ_VLLM_ENV", ".venv-vllm") / "bin" / "python"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TQ_ACTIVATIONS": "float",
}  # fmt: skip
# Some of more than the sliding window of the tiny models, 16.
PROMPTS = [[2, *range(20 + 7 * number, 30 + 17 * number)] for number in range(1, 5)]
TEXT_ONLY = {"hf_overrides": {"architectures": ["Gemma4ForCausalLM"]}}
_GENERATE = """
import hashlib, json, sys
from vllm import LLM, SamplingParams

def look(model):
    packed, tensors = [], {}
    for name, module in model.named_modules():
        if getattr(module, "tq_specs", None):
            packed.append(name)
            for leaf, one in module.named_parameters(recurse=False):
                if leaf.startswith("tq_"):
                    digest = hashlib.sha256(one.contiguous().view(-1).numpy().tobytes()).hexdigest()
                    tensors[name + "." + leaf] = digest
    return packed, tensors

def main():
    given = json.load(sys.stdin)
    llm = LLM(given["folder"], **given["options"])
    packed, tensors = llm.apply_model(look)[0] if given["look"] else ([], {})
    sampling = SamplingParams(temperature=0, max_tokens=given["tokens"], ignore_eos=True, logprobs=0)
    prompts = [{"prompt_token_ids": one} for one in given["prompts"]]
    outputs = [one.outputs[0] for one in llm.generate(prompts, sampling, use_tqdm=False)]
    found = {"tokens": [list(one.token_ids) for one in outputs], "packed": packed, "tensors": tensors,
             "logprobs": [[next(iter(step.values())).logprob for step in one.logprobs] for one in outputs]}
    print("FOUND " + json.dumps(found))

if __name__ == "__main__":
    main()
"""


@dataclass(frozen=True)
class Answers:
    """packed: names of the layers that hold packed weights. tensors: name of each packed tensor -> SHA-256."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    packed: list[str]
    tensors: dict[str, str]


def generate(folder: Path, *, look: bool = True, environment: dict[str, str] | None = None, **options: Any) -> Answers:
    """Greedy tokens in float32. options: of vLLM's `LLM`."""
    done = _run(folder, look, environment, options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return Answers(**json.loads(line.removeprefix("FOUND ")))


def can_import(module: str) -> bool:
    """Whether vLLM's environment has it, in working order."""
    return subprocess.run([str(VLLM), "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def refuse(folder: Path, *, environment: dict[str, str] | None = None, **options: Any) -> str:
    """What vLLM prints when it does not start."""
    done = _run(folder, False, environment, options)
    assert done.returncode != 0, done.stdout[-3000:]
    assert "FOUND " not in done.stdout
    return done.stdout + done.stderr


def _run(
    folder: Path, look: bool, environment: dict[str, str] | None, options: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    usual = {"enforce_eager": True, "max_model_len": 256, "dtype": "float32"}
    given = {
        "folder": str(folder), "options": {**usual, **options}, "look": look, "prompts": PROMPTS, "tokens": 16,
    }  # fmt: skip
    # A file, because ranks are started from it again.
    with tempfile.TemporaryDirectory() as home:
        program = Path(home, "generate.py")
        program.write_text(_GENERATE)
        return subprocess.run(
            [str(VLLM), str(program)],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
            timeout=600,
            check=False,
        )
