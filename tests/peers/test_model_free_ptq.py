"""Whole folders against llm-compressor 0.14.0.1's `model_free_ptq`: every tensor, config.json, index and side files.

It runs in an environment of its own, which `scripts/setup --peers` makes; all jobs in one process, for its imports
take longest. INT4 has no scheme there that fits groups of 64, so a scheme of our making is handed over, whose group
has no name of its own. safetensors refuses the views that it cuts blocks into, so they are made contiguous.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open
from support import checkpoints, tiny_models
from support.command import succeed

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".venv-llmcompressor" / "bin" / "python"
GEMMA4 = ROOT / "tests" / "fixtures" / "tiny_gemma4"
pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.exists(), reason="no .venv-llmcompressor; run scripts/setup --peers"),
]
RUN = """
import json, sys
import llmcompressor.entrypoints.model_free as model_free
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
save = model_free.save_file
model_free.save_file = lambda tensors, path: save({name: one.contiguous() for name, one in tensors.items()}, path)
for source, folder, scheme, ignore in json.load(sys.stdin):
    if scheme.startswith("INT4"):
        size = int(scheme.rpartition("_")[2])
        weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=size)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")
    model_free.model_free_ptq(source, folder, scheme=scheme, ignore=ignore)
"""
# What one writes by hand, for a Gemma 4 above all, and what our config.json should therefore say.
IGNORE = ["lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*", "re:.*norm.*"]
FP8 = ("division=weight",)
INT4 = ("scale=absmax",)


@dataclass(frozen=True)
class Case:
    """ignore: what the peer is told; None for what our config.json says."""

    model: str
    recipe: str
    changes: tuple[str, ...]
    scheme: str
    ignore: list[str] | None = None


CASES = {
    "gemma4-fp8-dynamic": Case("fixture", "fp8-dynamic", FP8, "FP8_DYNAMIC", IGNORE),
    "gemma4-fp8-block": Case("fixture", "fp8-block", FP8, "FP8_BLOCK", IGNORE),
    # 96 columns of a down projection are no multiple of 64: those are named in `ignore`.
    "gemma4-w4a16": Case("fixture", "w4a16", INT4, "INT4_64"),
    "f16-gemma4-w4a16-g32": Case("f16", "w4a16", (*INT4, "group_size=32"), "INT4_32", IGNORE),
    "f16-gemma4-fp8-dynamic": Case("f16", "fp8-dynamic", FP8, "FP8_DYNAMIC", IGNORE),
    "f32-qwen3-moe-fp8-block": Case("f32", "fp8-block", FP8, "FP8_BLOCK"),
    "qwen3-moe-fp8-dynamic": Case("qwen3_moe", "fp8-dynamic", FP8, "FP8_DYNAMIC"),
    "qwen3-moe-w4a16-g32": Case("qwen3_moe", "w4a16", (*INT4, "group_size=32"), "INT4_32"),
    "llama-fp8-dynamic": Case("llama", "fp8-dynamic", FP8, "FP8_DYNAMIC", IGNORE),
    "qwen3-fp8-block": Case("qwen3", "fp8-block", FP8, "FP8_BLOCK", IGNORE),
    "gemma4-mxfp4": Case("fixture", "mxfp4", (), "MXFP4A16", IGNORE),
    "qwen3-moe-mxfp4": Case("qwen3_moe", "mxfp4", (), "MXFP4A16"),
    # It stops at layers without a v_proj, as Gemma 4's.
    "llama-nvfp4": Case("llama", "nvfp4a16", (), "NVFP4A16", IGNORE),
    "qwen3-nvfp4": Case("qwen3", "nvfp4a16", (), "NVFP4A16", IGNORE),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    made = {"fixture": GEMMA4}
    for name in ("llama", "qwen3", "qwen3_moe"):
        made[name] = root / name
        made[name].mkdir()
        tiny_models.BUILDERS[name](made[name])
    made["f16"] = checkpoints.gemma(root / "f16", dtype="F16", shards=2)
    # The peer cannot read a config.json where this key is null.
    config = {key: value for key, value in checkpoints.QWEN_CONFIG.items() if key != "quantization_config"}
    made["f32"] = checkpoints.write_checkpoint(root / "f32", config, checkpoints.qwen_tensors(dtype="F32"), shards=2)
    return made


@pytest.fixture(scope="module")
def folders(sources, tmp_path_factory):
    """Case -> what we wrote and what the peer wrote."""
    root = tmp_path_factory.mktemp("converted")
    jobs, found = [], {}
    for name, case in CASES.items():
        ours, theirs = root / f"{name}-ours", root / f"{name}-theirs"
        changes = [part for change in case.changes for part in ("--set", change)]
        succeed("convert", sources[case.model], ours, "-r", case.recipe, *changes)
        ignore = section(ours)["ignore"] if case.ignore is None else case.ignore
        jobs.append([str(sources[case.model]), str(theirs), case.scheme, ignore])
        found[name] = (ours, theirs)
    done = subprocess.run([str(PEER), "-c", RUN], input=json.dumps(jobs), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return found


def section(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def tensors_of(folder):
    """File and name -> dtype, shape and bytes of every tensor."""
    return {
        (path.name, name): one
        for path in sorted(folder.glob("*.safetensors"))
        for name, one in raw_tensors(path).items()
    }


def raw_tensors(path):
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"], raw[start:][slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_in_the_same_file(case, folders):
    ours, theirs = map(tensors_of, folders[case])
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []
    assert any(dtype in ("F8_E4M3", "I32", "U8") for dtype, _, _ in ours.values())


@pytest.mark.parametrize("case", CASES)
def test_every_other_file(case, folders):
    ours, theirs = folders[case]
    names = {name for name in checkpoints.names_of(theirs) if not name.endswith(".safetensors")}
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json"} <= names
    different = [name for name in sorted(names) if (ours / name).read_bytes() != (theirs / name).read_bytes()]
    if CASES[case].scheme.startswith("INT4"):
        assert different == ["config.json"]
        assert renamed(ours) == renamed(theirs)
    else:
        assert different == []
    more = set(checkpoints.names_of(ours)) - set(checkpoints.names_of(theirs))
    assert more == {"tq_config.json", "tq_recipe.toml"}


def renamed(folder):
    """The text of config.json with the name of its only group left out."""
    config = json.loads((folder / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    assert len(groups) == 1
    text = (folder / "config.json").read_text()
    return text.replace(f'"{next(iter(groups))}"', '"the group"')


@pytest.mark.parametrize("case", CASES)
def test_the_stock_library_opens_ours(case, folders):
    ours, _ = folders[case]
    for path in ours.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert {name: file.get_slice(name).get_shape() for name in file.keys()} == {  # noqa: SIM118
                name: shape for name, (_, shape, _) in raw_tensors(path).items()
            }
