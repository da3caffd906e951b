"""The folder in MLX's layout: its files, what config.json and the index say, and that damage is found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints, mlx_models
from support.command import hashes, succeed, tq

from tqcli.checkpoint.header import parse_header
from tqcli.formats.mlx import Mlx

LAYERS = 6
PREFIX = "language_model.model.layers."


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return mlx_models.by_hand(tmp_path_factory.mktemp("mlx") / "source", "gemma4", layers=LAYERS)


@pytest.fixture(scope="module")
def output(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mlx") / "out"
    succeed("convert", source, folder, "-r", "config-i", "--set", "scale=minmax")
    return folder


@pytest.fixture
def out(output, here) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(output, here / "out"))


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def tensors_of(folder):
    return {name: one for path in folder.glob("*.safetensors") for name, one in checkpoints.read_file(path).items()}


def policy(layers):
    """Module -> bits of the Config-I policy, written out."""
    bits = {"language_model.model.embed_tokens": 8}
    for layer in range(layers):
        ends = layer < 2 or layer >= layers - 2
        for module, inside in {
            "self_attn.q_proj": 4, "self_attn.k_proj": 4, "self_attn.v_proj": 4, "self_attn.o_proj": 4,
            "mlp.gate_proj": 2, "mlp.up_proj": 2, "mlp.down_proj": 3,
            "experts.switch_glu.gate_proj": 2, "experts.switch_glu.up_proj": 2, "experts.switch_glu.down_proj": 3,
        }.items():  # fmt: skip
            bits[f"{PREFIX}{layer}.{module}"] = 8 if ends else inside
    return bits


def test_the_policy_of_config_i(output):
    """Every compressed module has its entry; what has none is not compressed."""
    section = load(output / "config.json")["quantization"]
    entries = {name: entry for name, entry in section.items() if isinstance(entry, dict)}
    assert entries == {name: {"group_size": 64, "bits": bits} for name, bits in policy(LAYERS).items()}
    assert {name: section[name] for name in section if name not in entries} == {
        "group_size": 64, "bits": 4, "mode": "affine",
    }  # fmt: skip
    assert {name.removesuffix(".scales") for name in tensors_of(output) if name.endswith(".scales")} == entries.keys()


def test_config_i_safe_keeps_the_dense_network_wide(source, tmp_path):
    succeed("convert", source, tmp_path / "out", "-r", "config-i-safe")
    section = load(tmp_path / "out" / "config.json")["quantization"]
    expected = {name: 8 if ".mlp." in name else bits for name, bits in policy(LAYERS).items()}
    assert {name: entry["bits"] for name, entry in section.items() if isinstance(entry, dict)} == expected


def test_uniform_4_bit_names_the_routers_alone(source, tmp_path):
    succeed("convert", source, tmp_path / "out", "-r", "mlx-4bit")
    section = load(tmp_path / "out" / "config.json")["quantization"]
    assert section == {"group_size": 64, "bits": 4, "mode": "affine"} | {
        f"{PREFIX}{layer}.router.proj": {"group_size": 64, "bits": 8} for layer in range(LAYERS)
    }


def test_a_width_that_differs_from_the_default_is_always_named(source, tmp_path):
    """mlx_lm before 0.32 reads the default otherwise."""
    recipe = tmp_path / "mixed.toml"
    recipe.write_text(
        'format = "mlx"\nbits = 5\ngroup_size = 32\n[[override]]\ntensors = ["*.0.mlp.*"]\nbits = 6\ngroup_size = 64\n'
    )
    succeed("convert", source, tmp_path / "out", "-r", recipe)
    section = load(tmp_path / "out" / "config.json")["quantization"]
    assert section == {"group_size": 32, "bits": 5, "mode": "affine"} | {
        f"{PREFIX}0.mlp.{one}_proj": {"group_size": 64, "bits": 6} for one in ("gate", "up", "down")
    }


def test_config_json_is_the_sources_without_its_towers(source, output):
    before, after = load(source / "config.json"), load(output / "config.json")
    sections = {"quantization": after["quantization"], "quantization_config": after["quantization"]}
    assert after == before | sections
    assert list(after) == sorted(after)


def test_keys_that_mlx_lm_drops(source, tmp_path):
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    said = load(copy / "config.json")
    more = {"_name_or_path": "x", "vision_config": {"a": 1}, "audio_config": None, "quantization_config": None}
    (copy / "config.json").write_text(json.dumps(said | more))
    succeed("convert", copy, tmp_path / "out", "-r", "mlx-4bit")
    after = load(tmp_path / "out" / "config.json")
    assert after.keys() - said.keys() == {"audio_config", "quantization", "quantization_config"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [({"eos_token_id": [1, 106]}, [1, 106]), ({"eos_token_id": 7}, 7), ({"eos_token_id": 0}, 5), ({}, 5)],
)
def test_the_tokens_that_end_an_answer(source, tmp_path, said, expected):
    """From generation_config.json where it has some; mlx_lm takes 0 for none."""
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    (copy / "config.json").write_text(json.dumps(load(copy / "config.json") | {"eos_token_id": 5}))
    (copy / "generation_config.json").write_text(json.dumps(said))
    succeed("convert", copy, tmp_path / "out", "-r", "mlx-4bit")
    assert load(tmp_path / "out" / "config.json")["eos_token_id"] == expected


@pytest.mark.parametrize("size", ["5GB", "60KB"])
def test_there_is_an_index_in_every_case(source, tmp_path, size):
    planned = json.loads(
        succeed("convert", source, "-r", "config-i", "-n", "--format", "json", "--shard-size", size).stdout
    )
    out = tmp_path / "out"
    succeed("convert", source, out, "-r", "config-i", "--shard-size", size)
    index = load(out / "model.safetensors.index.json")
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert (shards == ["model.safetensors"]) == (size == "5GB")
    assert {name: (out / name).stat().st_size for name in shards} == planned["shards"]
    found = {name: shard for shard in shards for name in checkpoints.read_file(out / shard)}
    assert index["weight_map"] == found
    assert list(index["weight_map"]) == sorted(found)
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in tensors_of(out).values())
    for shard in shards:
        raw = (out / shard).read_bytes()
        assert json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"] == {"format": "mlx"}
        parse_header(raw, shard, len(raw))


def test_the_three_parts_of_a_module_are_never_split(source, tmp_path):
    succeed("convert", source, tmp_path / "out", "-r", "mlx-4bit", "--shard-size", "1")
    where = load(tmp_path / "out" / "model.safetensors.index.json")["weight_map"]
    modules = [name.removesuffix(".scales") for name in where if name.endswith(".scales")]
    assert len(modules) > 50
    for module in modules:
        assert len({where[module + suffix] for suffix in (".weight", ".scales", ".biases")}) == 1


def test_side_files_are_copied_byte_for_byte(output):
    """mlx_lm writes the tokenizer anew and another model card."""
    for name, data in checkpoints.SIDE_FILES.items():
        assert (output / name).read_bytes() == data, name


@pytest.mark.parametrize("scale", ["minmax", "least-squares"])
def test_experts_are_encoded_as_one_matrix_of_all_rows(source, tmp_path, scale):
    succeed("convert", source, tmp_path / "out", "-r", "config-i", "--set", f"scale={scale}")
    originals, written = tensors_of(source), tensors_of(tmp_path / "out")
    _, shape, data = originals["model.language_model.layers.2.experts.gate_up_proj"]
    fused = np.frombuffer(data, np.uint16).reshape(shape)
    for leaf, part in zip(("gate_proj", "up_proj"), np.split(fused, 2, axis=1), strict=True):
        module = f"{PREFIX}2.experts.switch_glu.{leaf}"
        rows = np.ascontiguousarray(part).reshape(-1, shape[-1])
        parts = Mlx(bits=2, scale=scale).encode(rows, "BF16")
        expected = [("U32", (4, 64, 8)), ("BF16", (4, 64, 2)), ("BF16", (4, 64, 2))]
        for suffix, array, (dtype, stored_shape) in zip(
            (".weight", ".scales", ".biases"), parts, expected, strict=True
        ):
            assert written[module + suffix] == (dtype, stored_shape, array.tobytes())


@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_do_not_depend_on_workers(source, output, tmp_path, workers):
    succeed("convert", source, tmp_path / "out", "-r", "config-i", "--set", "scale=minmax", "--workers", workers)
    assert hashes(tmp_path / "out") == hashes(output)


def test_the_stored_recipe_makes_the_same_folder_again(source, output, tmp_path):
    succeed("convert", source, tmp_path / "again", "-r", output / "tq_recipe.toml")
    assert hashes(tmp_path / "again") == hashes(output)


def test_widths_that_no_group_fits_are_kept(tmp_path, monkeypatch):
    shapes = mlx_models.SHAPES["llama"](1)
    odd = {"model.layers.0.mlp.down_proj.weight": (128, 96)}
    monkeypatch.setitem(mlx_models.SHAPES, "llama", lambda layers: shapes | odd)
    source = mlx_models.by_hand(tmp_path / "source", "llama", layers=1)
    succeed("convert", source, tmp_path / "out", "-r", "mlx-4bit")
    name = "model.layers.0.mlp.down_proj.weight"
    assert tensors_of(tmp_path / "out")[name] == tensors_of(source)[name]
    assert "model.layers.0.mlp.up_proj.scales" in tensors_of(tmp_path / "out")


class TestVerify:
    """`tq inspect --verify` of a folder in this layout."""

    def check(self, *more):
        return tq("inspect", "out", "--verify", *more)

    def flip(self, name, byte, mask=1):
        dtype, shape, data = tensors_of(Path("out"))[name]
        changed = bytearray(data)
        changed[byte] ^= mask
        checkpoints.rewrite(Path("out"), {name: (dtype, shape, bytes(changed))})

    def publish(self):
        """Take away what tq wrote beside MLX's own files."""
        for name in ("tq_config.json", "tq_recipe.toml", "model.safetensors.index.json"):
            Path("out", name).unlink()

    def test_a_good_folder_passes(self, out, source):
        result = self.check("--source", source, "--all", "--format", "json")
        assert result.code == 0, result.stderr
        report = json.loads(result.stdout)
        written = tensors_of(out)
        packed = len(policy(LAYERS))
        assert report["tensors"] == report["checksums"] == len(written)
        assert (report["packed"], report["compared"]) == (packed, len(written) - 2 * packed)
        assert 0.05 < report["worst"]["error"] < 0.3

    @pytest.mark.parametrize("byte", [0, -1])
    @pytest.mark.parametrize("suffix", [".weight", ".scales", ".biases"])
    def test_a_flipped_bit(self, out, suffix, byte):
        name = f"{PREFIX}2.experts.switch_glu.up_proj{suffix}"
        self.flip(name, byte)
        result = self.check()
        assert result.code == 1
        assert result.stderr.startswith(f"error: `{name}` is not what was written\n")

    def test_a_published_folder_is_compared_with_its_source(self, out, source):
        self.publish()
        assert self.check("--source", source, "--all").code == 0
        # The exponent of the first scale.
        self.flip(f"{PREFIX}3.mlp.up_proj.scales", 1, 0x02)
        result = self.check("--source", source, "--all")
        assert result.code == 1
        assert f"`{PREFIX}3.mlp.up_proj.weight` does not decode to the source" in result.stderr

    def test_two_experts_that_changed_their_places(self, out, source):
        self.publish()
        module = f"{PREFIX}0.experts.switch_glu.down_proj"
        tensors = tensors_of(out)
        for suffix in (".weight", ".scales", ".biases"):
            dtype, shape, data = tensors[module + suffix]
            parts = np.frombuffer(data, np.uint8).reshape(shape[0], -1)[[1, 0, 2, 3]]
            checkpoints.rewrite(out, {module + suffix: (dtype, shape, parts.tobytes())})
        result = self.check("--source", source, "--all")
        assert result.code == 1
        assert f"`{module}.weight` does not decode to the source" in result.stderr

    def test_a_module_that_is_gone(self, out, source):
        self.publish()
        module = f"{PREFIX}5.self_attn.o_proj"
        checkpoints.rewrite(out, {}, drop=[module + suffix for suffix in (".weight", ".scales", ".biases")])
        result = self.check("--source", source)
        assert result.code == 1
        assert result.stderr.startswith(f"error: `{module}.weight` of the source is missing\n")

    def test_another_source(self, out, here):
        other = mlx_models.by_hand(here / "other", "gemma4", layers=LAYERS)
        name = "model.language_model.layers.1.experts.gate_up_proj"
        checkpoints.rewrite(other, {name: checkpoints.tensor((4, 128, 128), "BF16", seed=1234)})
        result = self.check("--source", "other")
        assert result.code == 1
        assert f"`{PREFIX}1.experts.switch_glu.gate_proj.weight` does not decode to the source" in result.stderr

    def test_a_lie_in_config_json(self, out):
        """mlx_lm believes the entry of a module, whatever its sizes are."""
        config = load(out / "config.json")
        config["quantization"][f"{PREFIX}2.mlp.up_proj"]["bits"] = 4
        (out / "config.json").write_text(json.dumps(config))
        result = self.check()
        assert result.code == 2
        assert f"`{PREFIX}2.mlp.up_proj` is 2-bit\n  why: config.json says 4" in result.stderr


def test_a_folder_of_mlx_is_not_compressed_again(out):
    result = tq("convert", "out", "twice", "-r", "mlx-4bit")
    assert result.code == 2
    assert "`out` is compressed already" in result.stderr
    assert not Path("twice").exists()


def test_an_unknown_model_type(here):
    mlx_models.by_hand(here / "model", "llama")
    (here / "model" / "config.json").write_text('{"model_type": "deepseek_v3", "num_hidden_layers": 2}')
    result = tq("convert", "model", "out", "-r", "mlx-4bit")
    assert result.code == 2
    assert result.stderr.startswith("error: `deepseek_v3` cannot be laid out for MLX\n")
    assert "known are `gemma3`" in result.stderr
