"""The folder that vLLM reads: which modules config.json takes for compressed, and which file each tensor is in."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support import checkpoints
from support.command import hashes, succeed

from tqcli.checkpoint.writer import ShardLayout
from tqcli.documents import recipe_toml
from tqcli.errors import InputError
from tqcli.job import Job, plan_job
from tqcli.layouts.compressed_tensors import ignored, quantization_config
from tqcli.plan import Plan

GEMMA_IGNORE = ["lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*", "re:.*norm.*"]


def config_of(model_type: str, layers: int) -> dict[str, object]:
    return {"model_type": model_type, "num_hidden_layers": layers}


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, checkpoints.Tensor]:
    return {name: checkpoints.tensor(shape) for name, shape in shapes.items()}


def attention(prefix: str) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}self_attn.{one}_proj.weight": (128, 128) for one in "qkvo"}


def network(prefix: str) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{one}_proj.weight": (128, 128) for one in ("gate", "up", "down")}


def llama() -> dict[str, tuple[int, ...]]:
    shapes = {"model.embed_tokens.weight": (64, 128), "lm_head.weight": (64, 128), "model.norm.weight": (128,)}
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        shapes |= attention(prefix) | network(prefix + "mlp.") | {prefix + "input_layernorm.weight": (128,)}
        shapes[prefix + "self_attn.q_proj.bias"] = (128,)
    return shapes


def phi3() -> dict[str, tuple[int, ...]]:
    """Query, key and value in one matrix, and so are gate and up."""
    shapes = {"model.embed_tokens.weight": (64, 128), "lm_head.weight": (64, 128)}
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + "self_attn.qkv_proj.weight": (256, 128), prefix + "self_attn.o_proj.weight": (128, 128)}
        shapes |= {prefix + "mlp.gate_up_proj.weight": (256, 128), prefix + "mlp.down_proj.weight": (128, 128)}
    return shapes


def glm4_moe() -> dict[str, tuple[int, ...]]:
    """A dense layer, one with routed and shared experts, and one that predicts a further token."""
    shapes = {"model.embed_tokens.weight": (64, 128), "lm_head.weight": (64, 128)}
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        shapes |= attention(prefix)
        if layer == 0:
            shapes |= network(prefix + "mlp.")
            continue
        shapes |= {prefix + "mlp.gate.weight": (2, 128), prefix + "mlp.gate.e_score_correction_bias": (2,)}
        shapes |= network(prefix + "mlp.shared_experts.")
        for expert in range(2):
            shapes |= network(f"{prefix}mlp.experts.{expert}.")
    last = "model.layers.2."
    more = {"embed_tokens.weight": (64, 128), "shared_head.head.weight": (64, 128), "eh_proj.weight": (128, 256)}
    return shapes | {last + name: shape for name, shape in more.items()} | {last + "enorm.weight": (128,)}


def square_gemma() -> dict[str, checkpoints.Tensor]:
    """Every width a multiple of 128, so that all formats hold all matrices."""
    widths = {160: 256, 192: 256, 96: 128}
    tensors = checkpoints.gemma_tensors(3)
    shapes = {name: tuple(widths.get(side, side) for side in shape) for name, (_, shape, _) in tensors.items()}
    return random_tensors(shapes)


MODELS = {
    "gemma4": (
        checkpoints.GEMMA_CONFIG | {"text_config": {"model_type": "gemma4_text", "num_hidden_layers": 3}},
        square_gemma(),
    ),
    "qwen3_moe": (config_of("qwen3_moe", 3), checkpoints.qwen_tensors(layers=3, dtype="BF16")),
    "glm4_moe": (config_of("glm4_moe", 2), random_tensors(glm4_moe())),
    "phi3": (config_of("phi3", 3), random_tensors(phi3())),
    "llama": (config_of("llama", 3), random_tensors(llama())),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: checkpoints.write_checkpoint(root / name, *made) for name, made in MODELS.items()}


def planned(folder: Path, recipe: Path, overrides: list[dict[str, object]], default: dict[str, object]) -> Plan:
    protect = {"protect": ["embed", "head", "router", "vision", "audio"]}
    recipe.write_bytes(recipe_toml({**default, **protect, "override": overrides}))
    return plan_job(Job(str(folder), str(recipe)))


def is_ignored(module: str, patterns: list[str]) -> bool:
    """As compressed-tensors and vLLM match: a whole name, or an expression from the left."""
    return any(re.match(one[3:], module) if one.startswith("re:") else one == module for one in patterns)


FORMATS = st.sampled_from(
    [
        {"format": "fp8", "strategy": "channel"},
        {"format": "fp8", "strategy": "block"},
        {"format": "int4", "group_size": 64},
        {"format": "int4", "group_size": 32},
        {"format": "mxfp4"},
        {"format": "nvfp4"},
    ]
)
SELECTORS = st.sampled_from(
    [
        {"roles": ["q", "k", "v"]},
        {"roles": ["q", "k", "v", "o"], "layers": {"last": 1}},
        {"roles": ["o"]},
        {"roles": ["gate", "up"], "layers": {"first": 1}},
        {"roles": ["down"]},
        {"roles": ["expert_gate", "expert_up", "expert_down"]},
        {"roles": ["expert_gate", "expert_up", "expert_down"], "layers": {"last": 2}},
        {"roles": ["embed"]},
        {"roles": ["head"]},
        {"roles": ["router"]},
        {"roles": ["vision"]},
        {"layers": {"first": 1}},
    ]
)
OVERRIDES = st.lists(
    st.builds(
        lambda selector, chosen: {**selector, **chosen, "optional": True},
        SELECTORS,
        st.one_of(st.just({"format": "keep"}), FORMATS),
    ),
    max_size=3,
)
KEEP_ATTENTION = [{"roles": ["q", "k", "v", "o"], "format": "keep"}]
COMPRESS_EMBEDDINGS = [{"roles": ["embed", "vision"], "format": "fp8", "strategy": "channel"}]


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=60, deadline=None)
@given(default=FORMATS, overrides=OVERRIDES)
@example(default={"format": "fp8", "strategy": "channel"}, overrides=[])
@example(default={"format": "fp8", "strategy": "channel"}, overrides=KEEP_ATTENTION)
@example(default={"format": "int4", "group_size": 64}, overrides=COMPRESS_EMBEDDINGS)
def test_config_json_tells_of_every_linear_module(model, default, overrides, folders):
    """Engines take every linear module for compressed, in the first group's format, but for what they are told."""
    try:
        plan = planned(folders[model], folders[model].parent / f"{model}.toml", overrides, default)
    except InputError as error:
        # Some mixtures cannot be: a fused matrix of two formats.
        assert "mix" in error.what, error
        assume(False)
    section = quantization_config(plan)
    groups = list(section["config_groups"].values())
    listed = {module: number for number, group in enumerate(groups) if number for module in group["targets"]}
    assert groups[0]["targets"] == ["Linear"]
    for decision in plan.decisions:
        module = decision.weight.name.removesuffix(".weight")
        if decision.format is None:
            matrix = len(decision.weight.shape) == 2 and decision.weight.name.endswith(".weight")
            assert is_ignored(module, section["ignore"]) or not matrix, module
            assert module not in listed
        else:
            assert not is_ignored(module, section["ignore"]), module
            group = groups[listed.get(module, 0)]
            assert {**group, "targets": ["Linear"]} == decision.format.scheme(), module
    formats = {group["format"] for group in groups}
    assert section["format"] == (formats.pop() if len(formats) == 1 else "mixed-precision")


@pytest.mark.parametrize("overrides", [[], KEEP_ATTENTION, [{"roles": ["q", "k", "v"], "format": "int4"}]])
def test_keys_that_are_values_too_are_told_under_both_names(overrides, folders, tmp_path):
    """vLLM loads such keys into one matrix with the queries, twice, and asks for all three modules."""
    plan = planned(folders["gemma4"], tmp_path / "r.toml", overrides, {"format": "fp8"})
    section = quantization_config(plan)
    attention = "model.language_model.layers.1.self_attn."
    assert attention + "k_proj.weight" in plan.by_name
    assert attention + "v_proj.weight" not in plan.by_name
    named = [section["ignore"], *(group["targets"] for group in section["config_groups"].values())]
    for names in named:
        assert (attention + "k_proj" in names) == (attention + "v_proj" in names)
        assert names.count(attention + "v_proj") <= 1
    assert any(attention + "v_proj" in names for names in named) == bool(overrides)


def test_the_ignore_list_of_a_usual_recipe(folders, tmp_path):
    plans = {name: planned(folders[name], tmp_path / "r.toml", [], {"format": "fp8"}) for name in MODELS}
    assert ignored(plans["gemma4"]) == GEMMA_IGNORE
    assert ignored(plans["llama"]) == GEMMA_IGNORE
    assert ignored(plans["phi3"]) == GEMMA_IGNORE
    gates = [f"model.layers.{layer}.mlp.gate" for layer in range(3)]
    assert ignored(plans["qwen3_moe"]) == GEMMA_IGNORE + gates
    further = ["model.layers.2.shared_head.head", "model.layers.2.eh_proj"]
    assert sorted(ignored(plans["glm4_moe"])) == sorted([*GEMMA_IGNORE, *gates[1:], *further])


def test_patterns_make_way_for_what_is_compressed(folders, tmp_path):
    plan = planned(folders["gemma4"], tmp_path / "r.toml", COMPRESS_EMBEDDINGS, {"format": "int4"})
    found = ignored(plan)
    assert not {"re:.*embed.*", "re:.*vision_tower.*"} & set(found)
    assert {"lm_head", "re:.*router", "re:.*norm.*"} <= set(found)
    refused = [one.weight.name for one in plan.decisions if one.refused]
    assert set(found) >= {name.removesuffix(".weight") for name in refused}


MIXED = """format = "fp8"
strategy = "channel"
[[override]]
roles = ["expert_gate", "expert_up", "expert_down"]
format = "int4"
group_size = 32
"""


def test_two_formats_in_one_folder(gemma_folder, tmp_path):
    """The commonest is for every linear module; the other one names its modules."""
    (tmp_path / "mixed.toml").write_text(MIXED)
    succeed("convert", gemma_folder, tmp_path / "out", "-r", tmp_path / "mixed.toml")
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert section["format"] == "mixed-precision"
    assert list(section["config_groups"]) == ["FP8_DYNAMIC", "W4A16_G32"]
    first, second = (section["config_groups"][name] for name in ("W4A16_G32", "FP8_DYNAMIC"))
    assert (first["format"], first["targets"]) == ("pack-quantized", ["Linear"])
    assert second["format"] == "float-quantized"
    leaves = Counter(target.rpartition(".")[2] for target in second["targets"])
    # The layer without values names them nevertheless.
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert leaves == dict.fromkeys(names, 2)
    assert not [target for target in second["targets"] if "experts" in target]
    tensors = checkpoints.read_file(tmp_path / "out" / "model.safetensors")
    assert {one[0] for name, one in tensors.items() if name.endswith(".weight_packed")} == {"I32"}
    packed = {name.removesuffix("_packed") for name in tensors if name.endswith("_packed")}
    assert all(".experts." in name for name in packed)
    succeed("inspect", tmp_path / "out", "--verify", "--source", gemma_folder, "--all")


def test_two_options_of_one_format_have_groups_of_their_own(folders, tmp_path):
    overrides = [{"roles": ["down"], "format": "int4", "group_size": 64, "scale": "absmax"}]
    plan = planned(folders["llama"], tmp_path / "r.toml", overrides, {"format": "int4", "group_size": 64})
    groups = quantization_config(plan)["config_groups"]
    assert list(groups) == ["W4A16_G64", "group_1"]
    assert groups["group_1"]["targets"] == [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]


def names_of(shards: tuple[ShardLayout, ...]) -> list[str]:
    return [shard.name for shard in shards]


class TestShards:
    def test_files_are_named_and_filled_as_the_source_s(self, sharded_folder, tmp_path):
        succeed("convert", sharded_folder, tmp_path / "out", "-r", "fp8-dynamic")
        files = [path.name for path in sorted(sharded_folder.glob("*.safetensors"))]
        assert len(files) == 3
        assert [path.name for path in sorted((tmp_path / "out").glob("*.safetensors"))] == files
        for file in files:
            before = checkpoints.read_file(sharded_folder / file)
            after = checkpoints.read_file(tmp_path / "out" / file)
            assert {origin(name) for name in after} == set(before)

    def test_other_names_are_kept_too(self, here):
        folder = checkpoints.qwen(here / "model", dtype="BF16")
        (folder / "model.safetensors").rename(folder / "all of it.safetensors")
        succeed("convert", folder, "out", "-r", "fp8-dynamic")
        index = json.loads(Path("out/model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {"all of it.safetensors"}
        succeed("inspect", "out", "--verify", "--source", folder)

    @pytest.mark.parametrize("size", ["100KB", "300KB"])
    def test_numbered_where_a_file_would_be_too_large(self, size, sharded_folder, tmp_path):
        succeed("convert", sharded_folder, tmp_path / "out", "-r", "fp8-dynamic", "--shard-size", size)
        files = [path.name for path in sorted((tmp_path / "out").glob("*.safetensors"))]
        limit = int(size.removesuffix("KB")) * 1000
        if size == "300KB":
            assert files == [path.name for path in sorted(sharded_folder.glob("*.safetensors"))]
        else:
            assert files == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
            assert len(files) > 3
        for file in files:
            tensors = checkpoints.read_file(tmp_path / "out" / file)
            assert sum(len(data) for _, _, data in tensors.values()) <= limit

    @pytest.mark.parametrize("recipe", ["fp8-dynamic", "fp8-block", "w4a16", "mxfp4", "nvfp4a16"])
    @pytest.mark.parametrize("source", ["gemma_folder", "sharded_folder"])
    def test_an_index_in_every_case(self, recipe, source, request, tmp_path):
        succeed("convert", request.getfixturevalue(source), tmp_path / "out", "-r", recipe)
        text = (tmp_path / "out" / "model.safetensors.index.json").read_text()
        index = json.loads(text)
        assert text == json.dumps(index, indent=2, sort_keys=True)
        files = sorted((tmp_path / "out").glob("*.safetensors"))
        inside = {path.name: checkpoints.read_file(path) for path in files}
        assert index["weight_map"] == {name: file for file, tensors in inside.items() for name in tensors}
        sizes = [len(data) for tensors in inside.values() for _, _, data in tensors.values()]
        assert index["metadata"] == {"total_size": sum(sizes)}

    def test_parts_of_a_weight_stay_together(self, sharded_folder, tmp_path):
        succeed("convert", sharded_folder, tmp_path / "out", "-r", "nvfp4a16", "--shard-size", "60KB")
        where = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
        packed = [name.removesuffix("_packed") for name in where if name.endswith("weight_packed")]
        assert len(packed) > 20
        for name in packed:
            assert len({where[name + suffix] for suffix in ("_packed", "_scale", "_global_scale")}) == 1, name

    @pytest.mark.parametrize("recipe", ["fp8-dynamic", "w4a16", "nvfp4a16"])
    def test_bytes_do_not_depend_on_how_the_source_is_cut(self, recipe, gemma_folder, sharded_folder, tmp_path):
        for name, source in (("one", gemma_folder), ("three", sharded_folder)):
            succeed("convert", source, tmp_path / name, "-r", recipe)
        one, three = (
            {name: one for path in (tmp_path / each).glob("*.safetensors") for name, one in read(path).items()}
            for each in ("one", "three")
        )
        assert one == three
        small = ("config.json", "tokenizer.json", "tq_recipe.toml")
        first, second = hashes(tmp_path / "one"), hashes(tmp_path / "three")
        assert {name: first[name] for name in small} == {name: second[name] for name in small}


def read(path: Path) -> dict[str, checkpoints.Tensor]:
    return checkpoints.read_file(path)


def origin(name: str) -> str:
    """The source's tensor that a stored one was made from."""
    name = name.replace(".weight_scale", ".weight")
    name = re.sub(r"\.experts\.[0-9]+\.(gate|up)_proj\.weight", ".experts.gate_up_proj", name)
    return re.sub(r"\.experts\.[0-9]+\.down_proj\.weight", ".experts.down_proj", name)


def test_config_json_is_the_source_s_and_a_section(gemma_folder, tmp_path):
    succeed("convert", gemma_folder, tmp_path / "out", "-r", "fp8-dynamic")
    text = (tmp_path / "out" / "config.json").read_text()
    config = json.loads(text)
    assert text == json.dumps(config, indent=2, sort_keys=True)
    section = config.pop("quantization_config")
    assert config == json.loads((gemma_folder / "config.json").read_text())
    assert (section["quant_method"], section["quantization_status"]) == ("compressed-tensors", "compressed")


def test_nothing_compressed_is_no_section(folders, tmp_path):
    """Nothing that a format can hold: the folder is plain, and must not say otherwise."""
    recipe = tmp_path / "r.toml"
    recipe.write_text('format = "keep"\n[[override]]\ntensors = ["*eh_proj"]\nformat = "int4"\ngroup_size = 128\n')
    tensors = random_tensors({"model.layers.0.eh_proj.weight": (8, 72), "model.embed_tokens.weight": (8, 8)})
    source = checkpoints.write_checkpoint(tmp_path / "model", config_of("glm4_moe", 1), tensors)
    succeed("convert", source, tmp_path / "out", "-r", recipe)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((source / "config.json").read_text())
