"""Our folders in vLLM 0.32: every linear module gets the scheme that it should, and every parameter its bytes.

It runs on the CPU, in the environment that `scripts/test_vllm` makes. Kernels for experts with Gemma's activation, and
for blocks on processors without AMX, are missing there: loading is stopped before kernels rearrange the weights. What
has kernels also answers: it must say what the decoded weights say.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny_models
from support.command import succeed
from support.vllm_runs import VLLM
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import tqcli

ROOT = Path(__file__).resolve().parents[2]
GEMMA4 = ROOT / "tests" / "fixtures" / "tiny_gemma4"
pytestmark = [pytest.mark.vllm, pytest.mark.slow]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}  # fmt: skip
# Saves every parameter as it is after loading, and what each module computes with.
LOAD = """
import importlib, json, sys
import vllm.model_executor.layers.fused_moe.oracle.int_wna16 as oracle
import vllm.model_executor.model_loader.base_loader as loader
from safetensors.torch import save_file
from vllm import LLM
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel
folder, out = sys.argv[1:3]
package = "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe"
moe = importlib.import_module(package + ".compressed_tensors_moe_wna16")
moe.select_wna16_moe_backend = lambda **_: (oracle.WNA16MoEBackend.TRITON, None)
CPUFp8BlockScaledMMKernel.is_supported = classmethod(lambda *_: (True, None))
class Stop(Exception): pass
def stop(model, *_):
    save_file({name: one.data.contiguous().clone() for name, one in model.named_parameters()}, out)
    methods = {name: type(getattr(one, "scheme", None) or one.quant_method).__name__
               for name, one in model.named_modules() if getattr(one, "quant_method", None) is not None}
    print("METHODS", json.dumps(methods))
    raise Stop
loader.process_weights_after_loading = stop
overrides = {"architectures": ["Gemma4ForCausalLM"]} if "gemma4" in open(folder + "/config.json").read() else {}
try:
    LLM(folder, enforce_eager=True, max_model_len=256, dtype="bfloat16", hf_overrides=overrides)
except Stop:
    pass
"""
GENERATE = """
import json, sys
from vllm import LLM, SamplingParams
folder, dtype = sys.argv[1:3]
llm = LLM(folder, enforce_eager=True, max_model_len=256, dtype=dtype)
prompts = [{"prompt_token_ids": one} for one in json.load(sys.stdin)]
sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
found = [[next(iter(one.values())).logprob for one in each.prompt_logprobs[1:]]
         for each in llm.generate(prompts, sampling, use_tqdm=False)]
print("LOGPROBS", json.dumps(found))
"""
FP8_LINEAR, FP8_EXPERTS = "CompressedTensorsW8A8Fp8", "CompressedTensorsW8A8Fp8MoEMethod"
INT4_LINEAR, INT4_EXPERTS = "CompressedTensorsWNA16", "CompressedTensorsWNA16MoEMethod"
PLAIN = "UnquantizedLinearMethod"
KEEP_ATTENTION = '[[override]]\nroles = ["q", "k", "v", "o"]\nformat = "keep"\n'
INT4 = 'format = "int4"\ngroup_size = 32\n'
FP8 = 'format = "fp8"\nstrategy = "channel"\n'
RECIPES = {
    "fp8-dynamic": FP8,
    "fp8-block": 'format = "fp8"\nstrategy = "block"\n',
    "w4a16": INT4,
    "attention kept": FP8 + KEEP_ATTENTION,
    "int4 experts": FP8 + '[[override]]\nroles = ["expert_gate", "expert_up", "expert_down"]\n' + INT4,
    "int4 attention": FP8 + '[[override]]\nroles = ["q", "k", "v"]\n' + INT4,
}
# Model, recipe, and what attention's first matrix, its last, a dense network and experts are computed with.
CASES = [
    ("gemma4", "fp8-dynamic", (FP8_LINEAR, FP8_LINEAR, FP8_LINEAR, FP8_EXPERTS)),
    ("gemma4", "w4a16", (INT4_LINEAR, INT4_LINEAR, INT4_LINEAR, INT4_EXPERTS)),
    ("gemma4", "attention kept", (PLAIN, PLAIN, FP8_LINEAR, FP8_EXPERTS)),
    ("gemma4", "int4 experts", (FP8_LINEAR, FP8_LINEAR, FP8_LINEAR, INT4_EXPERTS)),
    ("gemma4", "int4 attention", (INT4_LINEAR, FP8_LINEAR, FP8_LINEAR, FP8_EXPERTS)),
    ("qwen3_moe", "fp8-block", (FP8_LINEAR, FP8_LINEAR, None, FP8_EXPERTS)),
    ("qwen3", "w4a16", (INT4_LINEAR, INT4_LINEAR, INT4_LINEAR, None)),
]
COMMON = {
    "vocab_size": tiny_models.VOCABULARY, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512,
    "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "dtype": "bfloat16",
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": []}


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    root = tmp_path_factory.mktemp("vllm")
    models = {
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**COMMON)),
        "qwen3_moe": Qwen3MoeForCausalLM(Qwen3MoeConfig(**COMMON, **EXPERTS)),
    }
    for name, model in models.items():
        (root / name).mkdir()
        tiny_models._save(model, root / name, "1GB")

    def converted(model: str, recipe: str) -> Path:
        folder = root / f"{model} {recipe}"
        if not folder.exists():
            (root / "recipe.toml").write_text(RECIPES[recipe])
            source = GEMMA4 if model == "gemma4" else root / model
            succeed("convert", source, folder, "-r", root / "recipe.toml")
        return folder

    return converted


def vllm(code: str, *arguments: object, given: str = "") -> dict[str, object] | list[list[float]]:
    command = [str(VLLM), "-c", code, *map(str, arguments)]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith(("METHODS ", "LOGPROBS ")))
    return json.loads(line.partition(" ")[2])


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}


@pytest.mark.parametrize(("model", "recipe", "methods"), CASES, ids=lambda one: one if isinstance(one, str) else "")
def test_vllm_loads_what_we_wrote(model, recipe, methods, convert, tmp_path):
    folder = convert(model, recipe)
    found = vllm(LOAD, folder, tmp_path / "loaded.safetensors")
    ends = {"qkv_proj": methods[0], "o_proj": methods[1], "mlp.gate_up_proj": methods[2], "mlp.down_proj": methods[2]}
    for name, method in found.items():
        for end, wanted in ends.items():
            assert not name.endswith(end) or method == wanted, name
        if name.endswith(("router.proj", "mlp.gate")):
            assert method == PLAIN, name
    experts = [method for method in found.values() if "MoE" in method]
    assert set(experts) == ({methods[3]} if methods[3] else set())
    check_parameters(tensors_of(folder), load_file(tmp_path / "loaded.safetensors"))


def check_parameters(ours: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor]) -> None:
    """Every tensor lies in the parameter that joins it with its like, at its place, and nothing else is loaded."""
    ours = {name.replace("model.language_model.", "model."): one for name, one in ours.items() if of_the_text(name)}
    filled = dict.fromkeys(loaded, 0)
    for name, tensor in ours.items():
        place, part = place_of(name, loaded, ours)
        assert torch.equal(part.reshape(-1).float(), tensor.reshape(-1).float()), name
        filled[place] += tensor.numel()
        if ".k_proj." in name and name.replace(".k_proj.", ".v_proj.") not in ours:
            # Keys that are values too.
            assert torch.equal(loaded[place][-len(tensor) :].float(), tensor.float()), name
            filled[place] += tensor.numel()
    # Caches have scales of their own.
    own = [name for name in loaded if not name.endswith("weight_shape") and ".self_attn.attn." not in name]
    assert {name: filled[name] for name in own} == {name: loaded[name].numel() for name in own}


def of_the_text(name: str) -> bool:
    """No buffer, and nothing of the vision tower, which the text model leaves out."""
    return "vision" not in name and not name.endswith(("layer_scalar", "weight_shape"))


def place_of(name: str, loaded: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    """The parameter that a tensor was loaded into, and the part of it."""
    if name in loaded:
        return name, loaded[name]
    before, _, after = name.partition(".experts.")
    if after:
        expert, projection, leaf = after.split(".")
        stack = f".w{'2' if projection == 'down_proj' else '13'}_{leaf}"
        place = next(one for one in loaded if one.startswith(before + ".experts.") and one.endswith(stack))
        rows = loaded[place][int(expert)]
        half = len(rows) // 2
        return place, {"down_proj": rows, "gate_proj": rows[:half], "up_proj": rows[half:]}[projection]
    block, projection, leaf = name.rsplit(".", 2)
    attention = projection in ("q_proj", "k_proj", "v_proj")
    place = f"{block}.{'qkv_proj' if attention else 'gate_up_proj'}.{leaf}"
    names = ("q_proj", "k_proj", "v_proj") if attention else ("gate_proj", "up_proj")
    first = sum(len(ours[f"{block}.{one}.{leaf}"]) for one in names[: names.index(projection)])
    return place, loaded[place][first : first + len(ours[name])]


PROMPTS = [[2, *range(20 + 7 * number, 60 + 7 * number)] for number in range(4)]


def logprobs(folder: Path) -> list[list[float]]:
    """Of each prompt's tokens, by the decoded weights in float32."""
    model, _ = tqcli.load(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor(PROMPTS)).logits.log_softmax(-1)
    return logits[:, :-1].gather(-1, torch.tensor(PROMPTS)[:, 1:, None])[..., 0].tolist()


def difference(first: list[list[float]], second: list[list[float]]) -> float:
    return (torch.tensor(first) - torch.tensor(second)).abs().mean().item()


@pytest.mark.parametrize(("recipe", "dtype", "limit"), [("w4a16", "bfloat16", 0.03), ("fp8-dynamic", "float32", 0.2)])
def test_vllm_says_what_the_decoded_weights_say(recipe, dtype, limit, convert):
    """As nearly as bfloat16, or activations in FP8, allow; and nearer than the original weights do."""
    folder = convert("qwen3", recipe)
    theirs = vllm(GENERATE, folder, dtype, given=json.dumps(PROMPTS))
    decoded, original = logprobs(folder), logprobs(folder.parent / "qwen3")
    assert difference(theirs, decoded) < limit
    assert difference(theirs, decoded) < difference(theirs, original)
