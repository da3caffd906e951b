"""MLX folders made plain again: `-r bf16` gives what stock transformers loads, each weight the decode, rounded."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import checkpoints, mlx_models
from support.command import succeed, tq

import tqcli

pytestmark = pytest.mark.slow
KINDS = list(mlx_models.RUNNABLE)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {kind: mlx_models.random_model(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def compressed(sources, tmp_path_factory):
    root = tmp_path_factory.mktemp("compressed")
    for kind, source in sources.items():
        succeed("convert", source, root / kind, "-r", "config-i", "--set", "scale=minmax", "--shard-size", "300KB")
    return {kind: root / kind for kind in sources}


@pytest.fixture(scope="module")
def freed(compressed, tmp_path_factory):
    root = tmp_path_factory.mktemp("freed")
    for kind, folder in compressed.items():
        succeed("convert", folder, root / kind, "-r", "bf16", "--shard-size", "500KB")
    return {kind: root / kind for kind in compressed}


def tensors_of(folder):
    return {
        name: one for path in sorted(folder.glob("*.safetensors")) for name, one in checkpoints.read_file(path).items()
    }


def decoded(folder):
    """MLX's name -> float32 of its shape, by NumPy alone; kept weights as they are."""
    tensors = tensors_of(folder)
    found = {}
    for name, (dtype, shape, data) in tensors.items():
        module = name.removesuffix(".weight")
        if module + ".scales" in tensors and name != module:
            rows = mlx_models.decode_stored(tensors, module)
            found[name] = rounded(rows).reshape(*shape[:-1], rows.shape[-1])
        elif dtype == "BF16" and not name.endswith((".scales", ".biases")):
            found[name] = np.frombuffer(data, np.uint16).reshape(shape)
    return found


def rounded(values):
    """float32 -> BF16 as uint16, to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def original_names(kind, found):
    """MLX's names and stacks -> those of the original checkpoint, told anew here."""
    result = {}
    for name, values in found.items():
        plain = name.replace("language_model.model.", "model.language_model.")
        match = re.fullmatch(r"(.+?)\.(switch_glu|switch_mlp)\.(\w+)_proj\.weight", plain)
        if match is None:
            result[plain] = values
        elif match[2] == "switch_mlp":
            leaf = {"gate": "w1", "up": "w3", "down": "w2"}[match[3]] if kind == "mixtral" else match[3] + "_proj"
            result |= {f"{match[1]}.experts.{number}.{leaf}.weight": one for number, one in enumerate(values)}
        elif match[3] == "down":
            result[f"{match[1]}.down_proj"] = values
        elif match[3] == "up":
            gate = found[name.replace("up_proj", "gate_proj")]
            result[f"{match[1]}.gate_up_proj"] = np.concatenate([gate, values], axis=1)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_the_decode_rounded_under_its_original_name(kind, sources, compressed, freed):
    expected = original_names(kind, decoded(compressed[kind]))
    written = tensors_of(freed[kind])
    assert {name: one.shape for name, one in expected.items()} == {
        name: shape for name, (_, shape, _) in written.items()
    }
    assert [name for name, (_, _, data) in written.items() if expected[name].tobytes() != data] == []
    originals = tensors_of(sources[kind])
    assert {name: originals[name][:2] for name in written} == {name: one[:2] for name, one in written.items()}
    gone = {name for name in originals if name not in written}
    assert all(re.match(r"model\.(vision_tower|embed_vision)\.", name) for name in gone)


STOCK = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
for folder, target in zip(sys.argv[1::2], sys.argv[2::2]):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    found = {key: [str(one) for one in info[key]] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    # Not `model.float()`: some constants that the model makes for itself would stay rounded.
    wide = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = wide(input_ids=torch.tensor([[2, 100, 200, 300, 40, 50, 61, 77]]), use_cache=False).logits
    torch.save((found, model.state_dict(), logits), target)
assert "tqcli" not in sys.modules
"""


@pytest.fixture(scope="module")
def stock(freed, tmp_path_factory):
    """Kind -> keys without a partner, parameters, logits, as transformers alone gives them in a process of its own."""
    root = tmp_path_factory.mktemp("stock")
    paths = [str(path) for kind, folder in freed.items() for path in (folder, root / f"{kind}.pt")]
    done = subprocess.run([sys.executable, "-c", STOCK, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {kind: torch.load(root / f"{kind}.pt") for kind in freed}


@pytest.mark.parametrize("kind", KINDS)
def test_stock_transformers_finds_every_parameter(kind, freed, stock):
    unmatched, parameters, _ = stock[kind]
    assert unmatched == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    written = tensors_of(freed[kind])
    compared = [name for name in parameters if name in written]
    for name in compared:
        # Some routers are float32 in transformers, whatever the checkpoint is.
        expected = mlx_models.widen(np.frombuffer(written[name][2], np.uint16))
        assert parameters[name].float().numpy().tobytes() == expected.tobytes(), name
    assert len(compared) > len(parameters) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_compressed_folder_computes(kind, compressed, stock):
    model, _ = tqcli.load(compressed[kind], dtype=torch.float32)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([[2, 100, 200, 300, 40, 50, 61, 77]]), use_cache=False).logits
    assert torch.equal(stock[kind][2], expected)
    assert expected.std() > 0.1


@pytest.mark.parametrize("kind", ["gemma4", "qwen3_moe"])
def test_a_published_folder_can_be_freed_too(kind, compressed, freed, tmp_path):
    copy = Path(shutil.copytree(compressed[kind], tmp_path / "published"))
    for name in ("tq_config.json", "tq_recipe.toml"):
        (copy / name).unlink()
    succeed("convert", copy, tmp_path / "out", "-r", "bf16", "--shard-size", "500KB")
    assert tensors_of(tmp_path / "out") == tensors_of(freed[kind])


@pytest.mark.parametrize("kind", ["gemma4", "llama"])
def test_config_json_says_nothing_of_a_compression(kind, sources, freed):
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (sources[kind], freed[kind]))
    # The ends of an answer came from generation_config.json.
    assert after == {name: value for name, value in before.items() if name != "vision_config"} | {"eos_token_id": 1}


@pytest.mark.parametrize("kind", ["gemma4", "qwen3_moe"])
def test_it_can_be_compressed_again_another_way(kind, compressed, tmp_path):
    """From 8 bits, the native format loses what it loses of the original."""
    succeed("convert", compressed[kind], tmp_path / "out", "-r", "tq4", "--from-quantized")
    report = succeed("inspect", tmp_path / "out", "--verify", "--source", compressed[kind], "--all", "--format", "json")
    assert json.loads(report.stdout)["worst"]["error"] < 0.03


DAMAGES = {
    "a layer has no up": lambda name: None if ".3." in name and ".up_proj" in name else name,
    "a matrix of another name": lambda name: name.replace(".up_proj", ".side_proj") if ".3." in name else name,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", ["gemma4", "mixtral", "qwen3_moe"])
def test_experts_that_are_not_whole_cannot_be_freed(kind, damage, compressed, tmp_path):
    copy = Path(shutil.copytree(compressed[kind], tmp_path / "damaged"))
    for name in ("tq_config.json", "tq_recipe.toml", "model.safetensors.index.json"):
        (copy / name).unlink()
    for path in copy.glob("*.safetensors"):
        changed = {
            damage(name) if "switch_" in name else name: one for name, one in checkpoints.read_file(path).items()
        }
        changed.pop(None, None)
        checkpoints.write_file(path, changed)
    result = tq("convert", copy, tmp_path / "out", "-r", "bf16")
    assert result.code == 2
    assert re.match(r"error: the experts of `.*\.3(?:\..*)?` are not whole\n", result.stderr)


def test_experts_of_which_config_json_counts_more(compressed, tmp_path):
    copy = Path(shutil.copytree(compressed["qwen3_moe"], tmp_path / "damaged"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_experts": 5, "num_local_experts": 5}))
    result = tq("convert", copy, tmp_path / "out", "-r", "bf16")
    assert result.code == 2
    assert "are not whole" in result.stderr
