"""A plain checkpoint from a compressed one, of the native layout and of compressed-tensors: names, shapes, values."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import checkpoints
from support.command import hashes, succeed, tq

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.packed import decode_rows
from tqcli.readers.find import read

RECIPES = {
    "tq3": ("-r", "tq3"),
    "tq4-mixed": ("-r", "tq3-sensitive"),
    "tq3t": ("-r", "tq3t"),
    "tq2t-unrotated": ("-r", "tq2t", "--set", "rotation=none"),
    "tq3t-sensitive": ("-r", "tq3t-sensitive"),
    "fp8-dynamic": ("-r", "fp8-dynamic"),
    "fp8-block": ("-r", "fp8-block"),
    "w4a16": ("-r", "w4a16", "--set", "group_size=32"),
    "mxfp4": ("-r", "mxfp4"),
    "nvfp4a16": ("-r", "nvfp4a16"),
}
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
Q_PROJ = "model.language_model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {
        "gemma-bf16": checkpoints.gemma(root / "gemma-bf16"),
        "gemma-f16": checkpoints.gemma(root / "gemma-f16", dtype="F16", shards=3),
        "qwen-f32": checkpoints.qwen(root / "qwen-f32", dtype="F32"),
    }


@pytest.fixture(scope="module")
def folders(sources, tmp_path_factory):
    """(source, recipe) -> the compressed folder and the freed one, made when they are asked for."""
    root = tmp_path_factory.mktemp("freed")
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def pair(source: str, recipe: str) -> tuple[Path, Path]:
        if (source, recipe) not in made:
            made[source, recipe] = root / f"{source}-{recipe}", root / f"{source}-{recipe}-free"
            compressed, free = made[source, recipe]
            succeed("convert", sources[source], compressed, *RECIPES[recipe])
            succeed("convert", compressed, free, "-r", "bf16")
        return made[source, recipe]

    return pair


EVERY = [(source, recipe) for source in ("gemma-bf16", "gemma-f16", "qwen-f32") for recipe in RECIPES]


def tensors_of(folder: Path) -> dict[str, checkpoints.Tensor]:
    return {n: one for path in folder.glob("*.safetensors") for n, one in checkpoints.read_file(path).items()}


def as_torch(one: checkpoints.Tensor) -> torch.Tensor:
    dtype, shape, data = one
    return torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).reshape(shape)


def decoded(folder: Path) -> dict[str, torch.Tensor]:
    """float32 by the folder's own names; another way of stacking experts follows below."""
    storage = LocalFolder(folder)
    packed = read(open_checkpoint(storage)).packed
    return {name: torch.from_numpy(np.array(decode_rows(storage, one, 0, one.rows))) for name, one in packed.items()}


def stacked(weights: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The weight called `name` from weights that may be cut by expert; None where it was not compressed."""
    if name in weights:
        return weights[name].reshape(shape)
    before, _, leaf = name.rpartition(".")
    parts = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
    rows = [weights.get(f"{before}.{expert}.{part}.weight") for expert in range(shape[0]) for part in parts]
    if any(one is None for one in rows):
        return None
    return torch.cat([one for one in rows if one is not None]).reshape(shape)


@pytest.mark.parametrize(("source", "recipe"), EVERY)
def test_every_tensor_is_the_original_rounded(source, recipe, sources, folders):
    compressed, free = folders(source, recipe)
    originals, found, weights = tensors_of(sources[source]), tensors_of(free), decoded(compressed)
    assert found.keys() == originals.keys()
    count = 0
    for name, original in originals.items():
        value = stacked(weights, name, original[1])
        if value is None:
            assert found[name] == original, name
            continue
        count += 1
        assert found[name][:2] == original[:2], name
        assert torch.equal(as_torch(found[name]), value.to(TORCH[found[name][0]])), name
        error = (value - as_torch(original).float()).square().sum() / as_torch(original).float().square().sum()
        assert 0 < error < (0.09 if recipe.startswith("tq2") else 0.05), name
    assert count >= 7


@pytest.mark.parametrize(("source", "recipe"), EVERY)
def test_the_files_around_them_are_the_original_s(source, recipe, sources, folders):
    _, free = folders(source, recipe)
    before = json.loads((sources[source] / "config.json").read_text())
    config = json.loads((free / "config.json").read_text())
    # A null section is as good as none.
    assert config == {key: value for key, value in before.items() if key != "quantization_config"}
    for name, data in checkpoints.SIDE_FILES.items():
        assert (free / name).read_bytes() == data
    record = json.loads((free / "tq_config.json").read_text())
    assert record["layout"] == "plain"
    names = {*checkpoints.names_of(free)} - {*checkpoints.SIDE_FILES}
    assert names == {"config.json", "model.safetensors", "tq_config.json", "tq_recipe.toml"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_freed_and_published_folders_give_the_same(recipe, folders, here):
    """Without our record, a compressed-tensors folder tells as much; the native one does not tell shapes."""
    compressed, free = folders("gemma-bf16", recipe)
    shutil.copytree(compressed, "published")
    for ours in ("tq_config.json", "tq_recipe.toml"):
        (here / "published" / ours).unlink()
    result = tq("convert", "published", "again", "-r", "bf16")
    if recipe.startswith("tq"):
        assert result.code == 2
        assert "is written nowhere" in result.stderr
        return
    assert result.code == 0, result.stderr
    assert tensors_of(Path("again")) == tensors_of(free)


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_depends_on_pieces_workers_or_shards(recipe, folders, tmp_path, monkeypatch):
    from functools import partial

    from tqcli import convert as converting

    compressed, free = folders("gemma-bf16", recipe)
    small = partial(converting.pieces, piece_bytes=3000)
    monkeypatch.setattr(converting, "pieces", lambda decision, **_: small(decision))
    succeed("convert", compressed, tmp_path / "a", "-r", "bf16", "--workers", 3)
    assert hashes(tmp_path / "a") == hashes(free)
    succeed("convert", compressed, tmp_path / "b", "-r", "bf16", "--shard-size", "200KB")
    assert tensors_of(tmp_path / "b") == tensors_of(free)
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(free).keys()


def test_a_freed_folder_stays_as_it_is(folders, tmp_path):
    _, free = folders("gemma-bf16", "fp8-dynamic")
    succeed("convert", free, tmp_path / "again", "-r", "bf16")
    assert tensors_of(tmp_path / "again") == tensors_of(free)
    succeed("inspect", free, "--verify")


def test_a_freed_folder_is_verified_against_its_source(folders, tmp_path):
    compressed, free = folders("gemma-bf16", "w4a16")
    result = succeed("inspect", free, "--verify", "--source", compressed, "--all")
    assert "32 tensors against the source, all rows" in result.stdout
    copy = Path(shutil.copytree(free, tmp_path / "copy"))
    (copy / "tq_config.json").unlink()
    dtype, shape, data = tensors_of(copy)[Q_PROJ]
    checkpoints.rewrite(copy, {Q_PROJ: (dtype, shape, bytes([data[0] ^ 1]) + data[1:])})
    assert tq("inspect", copy, "--verify").code == 0
    result = tq("inspect", copy, "--verify", "--source", compressed)
    assert (result.code, result.stderr) == (1, f"error: `{Q_PROJ}` differs from the source\n")


def test_float16_may_be_asked_for(folders, tmp_path):
    compressed, free = folders("gemma-bf16", "fp8-dynamic")
    succeed("convert", compressed, tmp_path / "half", "-r", "bf16", "--set", "keep_dtype=float16")
    half, whole = tensors_of(tmp_path / "half"), tensors_of(free)
    assert {dtype for dtype, _, _ in half.values()} == {"F16"}
    assert torch.equal(as_torch(half[Q_PROJ]), as_torch(whole[Q_PROJ]).half())


def test_experts_that_are_not_whole_are_not_freed(folders, here):
    compressed, _ = folders("gemma-bf16", "fp8-dynamic")
    copy = Path(shutil.copytree(compressed, here / "copy"))
    lost = "model.language_model.layers.0.experts.2.up_proj.weight"
    checkpoints.rewrite(copy, {}, drop=[lost, lost + "_scale"])
    (copy / "model.safetensors.index.json").unlink()
    result = tq("convert", "copy", "out", "-r", "bf16")
    assert result.code == 2
    assert "expert 2 of `model.language_model.layers.0.experts` has no up_proj" in result.stderr
    assert not Path("out").exists()


UNKNOWN = {
    "fp8 with inverse scales": (
        "fp8",
        {Q_PROJ: ("F8_E4M3", (128, 128), bytes(128 * 128)), Q_PROJ + "_scale_inv": checkpoints.tensor((1, 1), "F32")},
    ),
    "gptq": (
        "gptq",
        {
            Q_PROJ.replace("weight", "qweight"): ("I32", (16, 128), bytes(16 * 128 * 4)),
            Q_PROJ.replace("weight", "scales"): checkpoints.tensor((1, 128), "F16"),
        },
    ),
}


@pytest.mark.parametrize("options", [("-r", "bf16"), ("-r", "tq3", "--from-quantized")], ids=["bf16", "tq3"])
@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_compression_that_is_not_known_is_never_freed(kind, options, here):
    """config.json without its section, around bytes that nobody decoded, would be a broken model without a word."""
    method, tensors = UNKNOWN[kind]
    config = checkpoints.GEMMA_CONFIG | {"quantization_config": {"quant_method": method}}
    kept = {name: one for name, one in checkpoints.gemma_tensors().items() if name != Q_PROJ}
    checkpoints.write_checkpoint(here / "model", config, kept | tensors)
    result = tq("convert", "model", "out", *options)
    assert result.code == 2
    assert method in result.stderr
    assert "mix" not in result.stderr


@pytest.mark.parametrize("recipe", ["tq3", "fp8-dynamic", "bf16"])
def test_a_folder_whose_tensors_are_not_those_that_it_lists_is_not_freed(recipe, here, gemma_folder):
    """A kept tensor of another name would pass into the plain checkpoint, and the model lack it there."""
    succeed("convert", gemma_folder, "out", "-r", recipe)
    path = next(Path("out").glob("*.safetensors"))
    tensors = checkpoints.read_file(path)
    norm = next(name for name in tensors if name.endswith("input_layernorm.weight"))
    checkpoints.write_file(path, {name + "x" if name == norm else name: one for name, one in tensors.items()})
    for index in Path("out").glob("*.index.json"):
        index.unlink()
    result = tq("convert", "out", "free", "-r", "bf16")
    assert result.code == 2
    assert f"`{norm}` is missing" in result.stderr
