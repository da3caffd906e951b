"""vLLM says token for token what it says of the decoded weights, while layers, experts and embeddings stay packed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import mixed, pack, plain_decode
from support.vllm_runs import TEXT_ONLY, VLLM, Answers, can_import, generate

from tqcli.formats.native import PAIRS

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM.exists(), reason="no environment of vLLM; scripts/test_vllm makes it"),
]


def check_same(found: Answers, wanted: Answers) -> None:
    assert found.tokens == wanted.tokens
    assert torch.allclose(torch.tensor(found.logprobs), torch.tensor(wanted.logprobs), atol=1e-3)
    assert not wanted.packed


def kinds(found: Answers) -> set[str]:
    return {name.rpartition(".")[2] for name in found.packed}


ATTENTION = {"qkv_proj", "o_proj"}
NETWORK = {"gate_up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("model", "recipe", "packed"),
    [
        ("qwen3", "tq2", ATTENTION | NETWORK),
        ("qwen3", "tq4t", ATTENTION | NETWORK | {"embed_tokens", "lm_head"}),
        ("qwen3_moe", "tq3", ATTENTION | {"routed_experts"}),
        ("qwen3_moe", "tq3t-sensitive", ATTENTION | {"routed_experts", "embed_tokens", "lm_head"}),
        ("gemma4", "tq3-sensitive", ATTENTION | NETWORK | {"routed_experts"}),
        ("gemma4", "tq3t", ATTENTION | NETWORK | {"routed_experts", "embed_tokens", "lm_head"}),
    ],
)
def test_tokens_are_those_of_the_decoded_weights(model, recipe, packed, convert):
    folder, decoded = convert(model, recipe)
    options = TEXT_ONLY if model == "gemma4" else {}
    found = generate(folder, **options)
    check_same(found, generate(decoded, **options))
    assert kinds(found) == packed


def test_the_model_with_a_vision_tower_serves_too(convert):
    """Its processor needs a torchvision; the usual wheels are for CUDA and cannot be imported beside torch for CPUs."""
    if not can_import("torchvision"):
        pytest.skip("no torchvision in vLLM's environment")
    folder, decoded = convert("gemma4", "tq3t")
    check_same(generate(folder), generate(decoded, **TEXT_ONLY))


@pytest.mark.parametrize(
    ("model", "recipe", "experts"),
    [("gemma4", "tq3", False), ("qwen3_moe", "tq3t-sensitive", False), ("qwen3_moe", "tq3t-sensitive", True)],
)
def test_two_ranks_answer_as_one(model, recipe, experts, convert):
    """Ranks meet within groups of 128 columns: neither model has as many on a rank. `experts`: whole ones to each."""
    folder, decoded = convert(model, recipe)
    options = TEXT_ONLY if model == "gemma4" else {}
    found = generate(
        folder,
        look=False,
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        tensor_parallel_size=2,
        enable_expert_parallel=experts,
        **options,
    )
    check_same(found, generate(decoded, **options))


def decoded_folder(source: Path, folder: Path, tensors: dict, formats: dict) -> Path:
    """What packed tensors decode to, by NumPy and the pages of the formats."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    found = {name: one.float() for name, one in tensors.items() if not name.endswith(mixed_endings())}
    for name, stored_as in formats.items():
        shape = pack.tensors_of(source)[name].shape
        parts = [tensors[name + ending].numpy() for ending in PAIRS[stored_as.format]]
        found[name] = torch.from_numpy(mixed.decode(stored_as, *parts, shape[-1])).view(shape)
    save_file(found, folder / "model.safetensors")
    return folder


def mixed_endings() -> tuple[str, ...]:
    return tuple(ending for pair in PAIRS.values() for ending in pair)


def mixed_folder(source: Path, folder: Path) -> tuple[Path, dict, dict]:
    """Every format at once, q, k and v in three, router and vision tower packed too."""
    tensors, formats = mixed.pack_tensors(source)
    mixed.write(source, folder, tensors, formats)
    record = json.loads((folder / "tq_config.json").read_text())
    shapes = {name: list(one.shape) for name, one in pack.tensors_of(source).items()}
    record["tensors"] = {name: {**record["tensors"].get(name, {}), "shape": shapes[name]} for name in shapes}
    (folder / "tq_config.json").write_text(json.dumps(record))
    return folder, tensors, formats


@pytest.mark.parametrize("model", ["gemma4", "qwen3_moe"])
def test_every_format_at_once(model, sources, tmp_path):
    folder, tensors, formats = mixed_folder(sources[model], tmp_path / "mixed")
    decoded = decoded_folder(sources[model], tmp_path / "decoded", tensors, formats)
    options = TEXT_ONLY if model == "gemma4" else {}
    found = generate(folder, **options)
    check_same(found, generate(decoded, **options))
    assert kinds(found) >= ATTENTION | {"routed_experts", "embed_tokens"}


@pytest.mark.parametrize("model", ["gemma4", "qwen3_moe"])
def test_published_checkpoints_are_found_by_their_files(model, sources, tmp_path):
    """Nothing in config.json, routers packed, the rest in F16, and no shapes anywhere."""
    source = sources[model]
    tensors = pack.pack_tensors(source, packs=pack.is_packed_by_the_peer, kept_dtype=torch.float16)
    folder = pack.write(source, tmp_path / "published", tensors, tq_config=pack.published_tq_config())
    decoded = tmp_path / "decoded"
    shutil.copytree(source, decoded, ignore=shutil.ignore_patterns("*.safetensors*"))
    plain = {}
    for name, weight in pack.tensors_of(source).items():
        codes, norms = (tensors.get(name + ending) for ending in PAIRS["tq"])
        if codes is None:
            plain[name] = tensors[name].float()
            continue
        matrix = plain_decode.decode(codes.numpy(), norms.numpy(), weight.shape[-1], 3, 128, 42)
        plain[name] = torch.from_numpy(matrix).reshape(weight.shape).contiguous()
    save_file(plain, decoded / "model.safetensors")
    options = TEXT_ONLY if model == "gemma4" else {}
    found = generate(folder, **options)
    check_same(found, generate(decoded, **options))
    assert kinds(found) >= ATTENTION | {"routed_experts"}


@pytest.mark.parametrize(
    ("model", "recipe", "word"), [("gemma4", "tq3", "turboquant"), ("qwen3_moe", "tq3t-sensitive", "tq")]
)
def test_a_plain_checkpoint_is_packed_while_loading_to_the_bytes_of_a_conversion(model, recipe, word, sources, convert):
    options = TEXT_ONLY if model == "gemma4" else {}
    online = generate(sources[model], quantization=word, environment={"TQ_RECIPE": recipe}, **options)
    converted = generate(convert(model, recipe)[0], **options)
    assert online.tensors == converted.tensors
    assert online.tensors
    assert online.tokens == converted.tokens


def test_compiled_graphs_of_one_model_in_two_formats_are_kept_apart(sources, tmp_path):
    """vLLM keeps compiled graphs by the model's configuration, which is the same for both."""
    compiled = {"TORCHDYNAMO_DISABLE": "0", "VLLM_CACHE_ROOT": str(tmp_path)}
    for recipe in ("tq4", "tq3", "tq4"):
        said = {"TQ_RECIPE": recipe}
        found = generate(
            sources["qwen3"], quantization="tq", look=False, enforce_eager=False, environment={**said, **compiled}
        )
        assert found.tokens == generate(sources["qwen3"], quantization="tq", look=False, environment=said).tokens


def test_compiled_experts_and_embeddings_answer_as_others_do(convert, tmp_path):
    folder, decoded = convert("gemma4", "tq3t")
    compiled = {"TORCHDYNAMO_DISABLE": "0", "VLLM_CACHE_ROOT": str(tmp_path)}
    found = generate(folder, look=False, enforce_eager=False, environment=compiled, **TEXT_ONLY)
    check_same(found, generate(decoded, **TEXT_ONLY))


def test_activations_are_rounded_to_16_bits_unless_it_is_said_otherwise(convert):
    folder, decoded = convert("qwen3_moe", "tq3t-sensitive")
    usual = generate(folder, look=False, environment={"TQ_ACTIVATIONS": ""})
    coarse = generate(folder, look=False, environment={"TQ_ACTIVATIONS": "int8"})
    exact = generate(decoded, look=False)

    def difference(found: Answers) -> float:
        """Of the first token, where texts have not parted yet."""
        pairs = zip(found.logprobs, exact.logprobs, strict=True)
        return max(abs(one[0] - other[0]) for one, other in pairs)

    assert 0 < difference(usual) < 1e-3
    assert difference(usual) < difference(coarse) < 0.1
