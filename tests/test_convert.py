"""The output folder: its files, their bytes, and that no way of running changes them."""

import json
import os
import stat
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from support import checkpoints
from support.command import hashes, succeed, tq

from tqcli import convert as converting
from tqcli.checkpoint.header import DTYPE_BITS, parse_header
from tqcli.formats.native import PAIRS, SUFFIXES
from tqcli.formats.tq import Tq
from tqcli.job import Job, plan_job

GUARD = "REQUIRES__pip_install_tqcli__then__import_tqcli.safetensors"


@pytest.fixture(scope="module")
def output(gemma_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "out"
    succeed("convert", gemma_folder, folder, "-r", "tq3")
    return folder


@pytest.fixture(scope="module")
def sharded(gemma_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "out"
    succeed("convert", gemma_folder, folder, "--shard-size", "60KB")
    return folder


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_config_is_the_sources_plus_two_keys(gemma_folder, output):
    source, written = load(gemma_folder / "config.json"), load(output / "config.json")
    assert list(written)[: len(source)] == list(source)
    assert {key: written[key] for key in source} == source
    assert set(written) - set(source) == {"quantization_config", "transformers_weights"}
    assert written["transformers_weights"] == GUARD
    assert written["quantization_config"] == {
        "quant_method": "turboquant",
        "format_version": 1,
        "bits": 3,
        "group_size": 128,
        "seed": 42,
        "tool": "tqcli 0.1.0",
    }


def test_a_plain_copy_has_no_quantization_section(gemma_folder, tmp_path):
    recipe = tmp_path / "keep.toml"
    recipe.write_text('format = "keep"\n')
    succeed("convert", gemma_folder, tmp_path / "out", "-r", recipe)
    assert load(tmp_path / "out" / "config.json") == load(gemma_folder / "config.json")
    assert checkpoints.read_file(tmp_path / "out" / "model.safetensors") == checkpoints.read_file(
        gemma_folder / "model.safetensors"
    )


def test_side_files_are_copied_byte_for_byte(output):
    for name, data in checkpoints.SIDE_FILES.items():
        assert (output / name).read_bytes() == data, name


def test_nothing_else_is_in_the_folder(output):
    written = {"config.json", "model.safetensors", "tq_config.json", "tq_recipe.toml"}
    assert set(checkpoints.names_of(output)) == written | set(checkpoints.SIDE_FILES)


def test_one_shard_has_no_index_and_several_have_one(output, sharded):
    assert not (output / "model.safetensors.index.json").exists()
    index = load(sharded / "model.safetensors.index.json")
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))
    count = len(shards)
    assert count > 3
    assert shards == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    found = {name: shard for shard in shards for name in checkpoints.read_file(sharded / shard)}
    assert index["weight_map"] == found
    sizes = [len(data) for shard in shards for _, _, data in checkpoints.read_file(sharded / shard).values()]
    assert index["metadata"]["total_size"] == sum(sizes)


def test_a_pair_is_never_split(sharded):
    where = load(sharded / "model.safetensors.index.json")["weight_map"]
    for codes, beside in (PAIRS["trellis"], PAIRS["uniform"]):
        pairs = [name for name in where if name.endswith(codes)]
        assert pairs
        assert all(where[name] == where[name.removesuffix(codes) + beside] for name in pairs)


def test_every_tensor_is_aligned_to_its_item(qwen_folder, tmp_path):
    odd = {"model.norm.weight": checkpoints.tensor((3,), "F16"), "count": ("I64", (1,), b"\0" * 8)}
    tensors = checkpoints.qwen_tensors(dtype="F16") | odd | {"flags": ("BOOL", (3,), b"\1\0\1")}
    checkpoints.write_checkpoint(tmp_path / "model", checkpoints.QWEN_CONFIG, tensors)
    succeed("convert", tmp_path / "model", tmp_path / "out", "-r", "tq3")
    path = tmp_path / "out" / "model.safetensors"
    header = parse_header(path.read_bytes(), path.name, path.stat().st_size)
    assert header.nbytes % 8 == 0
    assert len(header.tensors) > 10
    for tensor in header.tensors:
        assert tensor.offset % (DTYPE_BITS[tensor.dtype] // 8) == 0, tensor.name


def test_the_stock_library_opens_every_shard(sharded):
    for path in sharded.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                if name.endswith(SUFFIXES):
                    assert file.get_tensor(name).nbytes == len(checkpoints.read_file(path)[name][2])


@pytest.mark.parametrize("source", ["gemma_folder", "qwen_folder"])
def test_packed_bytes_are_the_formats_and_kept_ones_the_sources(source, request, tmp_path):
    folder = request.getfixturevalue(source)
    succeed("convert", folder, tmp_path / "out", "-r", "tq3", "--set", "bits=4", "--set", "seed=7")
    originals = checkpoints.read_file(folder / "model.safetensors")
    written = checkpoints.read_file(tmp_path / "out" / "model.safetensors")
    tq4 = Tq(bits=4, seed=7)
    packed = [name.removesuffix(".tq_packed") for name in written if name.endswith(".tq_packed")]
    assert any("experts" in name for name in packed)
    for name in packed:
        dtype, shape, data = originals.pop(name)
        rows = np.frombuffer(data, np.uint16 if dtype == "BF16" else np.float32).reshape(-1, shape[-1])
        codes, norms = tq4.encode(rows, dtype)
        assert written.pop(name + ".tq_packed") == ("U8", codes.shape, codes.tobytes())
        assert written.pop(name + ".tq_norms") == ("F32", norms.shape, norms.tobytes())
    assert written == originals


def test_tq_config_tells_of_every_tensor(gemma_folder, output):
    config = load(output / "tq_config.json")
    assert config["format"] == "tq3_native"
    assert (config["bits"], config["group_size"], config["quantizer_seed"]) == (3, 128, 42)
    assert config["original_model"] == "gemma"
    assert config["source"]["model"] == "gemma"
    originals = checkpoints.read_file(gemma_folder / "model.safetensors")
    assert set(config["tensors"]) == set(originals)
    assert config["compressed_layers"] == sum("bits" in entry for entry in config["tensors"].values())
    padded = {name: shape[-1] for name, (_, shape, _) in originals.items() if "bits" in config["tensors"][name]}
    assert config["orig_in_dims"] == {name: width for name, width in padded.items() if width % 128}
    assert sorted(checkpoints.SIDE_FILES) == config["files"]
    for name, (dtype, shape, _) in originals.items():
        entry = config["tensors"][name]
        assert (entry["dtype"], entry["shape"]) == (dtype, list(shape))
        assert all(len(digest) == 64 for digest in entry["sha256"].values())


def test_keys_that_published_readers_would_misread_are_left_out(gemma_folder, tmp_path):
    recipe = tmp_path / "mixed.toml"
    recipe.write_text(
        'format = "tq"\nbits = 3\n[[override]]\nlayers = { first = 1 }\nbits = 4\n'
        '[[override]]\nroles = ["down"]\nbits = 2\n'
    )
    succeed("convert", gemma_folder, tmp_path / "out", "-r", recipe)
    config = load(tmp_path / "out" / "tq_config.json")
    assert not {"bits", "group_size", "quantizer_seed", "sensitive_bits"} & set(config)
    section = load(tmp_path / "out" / "config.json")["quantization_config"]
    assert section["bits"] == 3
    assert section["tensors"]["model.language_model.layers.0.mlp.down_proj.weight"]["bits"] == 4
    assert section["tensors"]["model.language_model.layers.1.mlp.down_proj.weight"]["bits"] == 2
    assert "model.language_model.layers.1.mlp.up_proj.weight" not in section["tensors"]


def test_two_widths_are_told_to_published_readers_by_their_patterns(gemma_folder, tmp_path):
    succeed("convert", gemma_folder, tmp_path / "out", "-r", "tq3-sensitive")
    config = load(tmp_path / "out" / "tq_config.json")
    for name, entry in config["tensors"].items():
        if "bits" in entry:
            sensitive = any(pattern in name for pattern in config["sensitive_patterns"])
            assert entry["bits"] == (config["sensitive_bits"] if sensitive else config["bits"]), name


def test_the_stored_recipe_makes_the_same_folder_again(gemma_folder, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'summary = "é \\u007f \\"q\\" 😀"\nformat = "tq"\nbits = 3\ngroup_size = 64\nkeep_dtype = "float16"\n'
        '[[override]]\nwhy = "ends"\nlayers = { first = 1 }\ntensors = ["*.mlp.*", "re:.*q_proj"]\nformat = "keep"\n'
        '[[override]]\nroles = ["k", "v", "q"]\nlayers = { last = 1 }\nbits = 4\n'
    )
    # The first override takes q and leaves k and v: that must not fuse.
    assert tq("convert", gemma_folder, tmp_path / "no", "-r", recipe).code == 2
    recipe.write_text(recipe.read_text().replace(', "re:.*q_proj"', ""))
    succeed("convert", gemma_folder, tmp_path / "out", "-r", recipe)
    succeed("convert", gemma_folder, tmp_path / "again", "-r", tmp_path / "out" / "tq_recipe.toml")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "again")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_modes_of_any_new_file(gemma_folder, tmp_path, umask):
    before = os.umask(umask)
    try:
        succeed("convert", gemma_folder, tmp_path / "out", "--shard-size", "500KB")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in checkpoints.names_of(tmp_path / "out")}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_bytes_do_not_depend_on_workers(sharded, gemma_folder, tmp_path, workers):
    succeed("convert", gemma_folder, tmp_path / "out", "--shard-size", "60KB", "--workers", workers)
    assert hashes(tmp_path / "out") == hashes(sharded)


@pytest.mark.parametrize("piece_bytes", [1, 1000, 4096, 1 << 16])
def test_bytes_do_not_depend_on_the_pieces(sharded, gemma_folder, tmp_path, monkeypatch, piece_bytes):
    pieces = partial(converting.pieces, piece_bytes=piece_bytes)
    monkeypatch.setattr(converting, "pieces", lambda decision, **_: pieces(decision))
    succeed("convert", gemma_folder, tmp_path / "out", "--shard-size", "60KB", "--workers", 3)
    assert hashes(tmp_path / "out") == hashes(sharded)


def test_bytes_do_not_depend_on_the_place_or_age_of_the_source(output, tmp_path):
    copy = checkpoints.gemma(tmp_path / "elsewhere" / "gemma")
    succeed("convert", copy, tmp_path / "out", "-r", "tq3")
    assert hashes(tmp_path / "out") == hashes(output)


def test_bytes_do_not_depend_on_how_the_source_is_cut(gemma_folder, tmp_path):
    for name, options in (("a", {"shards": 3}), ("b", {"shards": 3, "index": False})):
        checkpoints.gemma(tmp_path / name / "gemma", **options)
        succeed("convert", tmp_path / name / "gemma", tmp_path / name / "out")
    first, second = hashes(tmp_path / "a" / "out"), hashes(tmp_path / "b" / "out")
    assert first == second


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("size", ["1", "30KB", "5GB"])
def test_the_plan_is_exact_to_the_byte(tmp_path, dtype, size):
    source = checkpoints.gemma(tmp_path / "model", dtype=dtype, shards=2)
    planned = json.loads(succeed("convert", source, "--dry-run", "--format", "json", "--shard-size", size).stdout)
    succeed("convert", source, tmp_path / "out", "--shard-size", size)
    written = {path.name: path.stat().st_size for path in sorted((tmp_path / "out").glob("*.safetensors"))}
    assert planned["shards"] == written
    assert planned["file_bytes"] == sum(written.values())
    data = [len(data) for name in written for _, _, data in checkpoints.read_file(tmp_path / "out" / name).values()]
    assert planned["weight_bytes"] == sum(data)


def test_the_plan_reads_no_weights(tmp_path):
    """A sparse file without a single byte of weights plans as well as a real one."""
    config = {"model_type": "llama", "num_hidden_layers": 1}
    folder = checkpoints.write_checkpoint(tmp_path / "model", config, {})
    entry = {"dtype": "BF16", "shape": [4096, 4096], "data_offsets": [0, 1 << 25]}
    text = json.dumps({"model.layers.0.self_attn.q_proj.weight": entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (1 << 25))
    assert int(succeed("convert", folder, "-r", "tq3", "--dry-run", "--format", "quiet").stdout) > 6_800_000


def test_a_dry_run_writes_nothing(gemma_folder, tmp_path):
    before = hashes(gemma_folder)
    succeed("convert", gemma_folder, tmp_path / "out", "--dry-run")
    assert not (tmp_path / "out").exists()
    assert hashes(gemma_folder) == before


def test_float16_for_what_is_kept(tmp_path):
    source = checkpoints.gemma(tmp_path / "model", dtype="F32")
    succeed("convert", source, tmp_path / "out", "-r", "tq3", "--set", "keep_dtype=float16")
    originals = checkpoints.read_file(source / "model.safetensors")
    name = "model.language_model.embed_tokens.weight"
    dtype, shape, data = checkpoints.read_file(tmp_path / "out" / "model.safetensors")[name]
    assert dtype == "F16"
    assert shape == originals[name][1]
    assert data == np.frombuffer(originals[name][2], np.float32).astype(np.float16).tobytes()


def test_pieces_cover_each_tensor_once_in_order(gemma_folder):
    plan = plan_job(Job(str(gemma_folder), "tq3"))
    for decision in plan.decisions:
        cut = list(converting.pieces(decision, piece_bytes=1000))
        assert cut[0].begin == 0
        assert all(a.end == b.begin for a, b in pairwise(cut))
        assert sum(piece.source_bytes for piece in cut) == decision.weight.nbytes
