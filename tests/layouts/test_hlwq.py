"""The HLWQ folder that tq writes: files, names, config files, the bytes of a small one, and the way back."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from support import checkpoints
from support.command import succeed, tq
from support.hlwq_folders import TINY, bf16, opened, values_of

from tqcli import convert as converting
from tqcli.architectures.base import TensorRole, find
from tqcli.checkpoint.header import TensorInfo
from tqcli.codec.hlwq_tables import levels
from tqcli.formats.hlwq import Hlwq
from tqcli.job import Job, plan_job
from tqcli.layouts.base import find as find_layout
from tqcli.layouts.experts import paired, sliced, stacked
from tqcli.layouts.hlwq import in_slices
from tqcli.layouts.originals import original_weights
from tqcli.plan import make_plan
from tqcli.readers.find import read
from tqcli.recipe import load_recipe
from tqcli.reference_model import reference_model
from tqcli.version import __version__
from tqcli.weights import Run, Weight

BITS = (2, 3, 4, 5, 6, 8)
EXPERTS = "model.language_model.layers.0.experts"
GUARD = "REQUIRES__pip_install_tqcli__then__import_tqcli.safetensors"
# By the published program: everything but norms, routers and the vision tower.
PUBLISHED = (
    'format = "hlwq"\nprotect = ["router", "vision", "audio"]\n'
    '[[override]]\nwhy = "its projection is a linear layer like any other"\ntensors = ["*.embed_vision.*"]\n'
)


@pytest.fixture(scope="module")
def output(gemma_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hlwq") / "out"
    succeed("convert", gemma_folder, folder, "-r", "hlwq-q5")
    return folder


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_byte_is_what_it_was(output):
    """All files but those whose content is the source's own; the version of tq is no part of it."""
    version = f"tqcli {__version__}".encode()
    state = hashlib.sha256()
    for name in ("config.json", "hlwq_config.json", "model-extra.safetensors", "polar_state.safetensors"):
        state.update((output / name).read_bytes().replace(version, b"tqcli"))
    assert state.hexdigest() == "727bb74b9e6db237599991f46990a66dbbf94dbe22c3934836e1e37b5c8a1b14"


def test_compressed_weights_lie_in_one_file_and_the_rest_in_another(output, gemma_folder):
    state = checkpoints.read_file(output / "polar_state.safetensors")
    extra = checkpoints.read_file(output / "model-extra.safetensors")
    source = checkpoints.read_file(gemma_folder / "model.safetensors")
    assert {name.rpartition("__")[2] for name in state} == {"packed", "norms", "meta"}
    assert {name: source[name] for name in extra} == extra
    names = {name.rpartition("__")[0] for name in state}
    experts = {f"{EXPERTS}.{one}_e{i}" for one in ("gate_up_proj", "down_proj") for i in range(4)}
    assert experts <= names
    assert not names & extra.keys()
    fused = {name.rpartition("_e")[0] if ".experts." in name else name for name in names}
    assert fused | extra.keys() == source.keys()
    assert set(checkpoints.names_of(output)) == {
        "config.json", "hlwq_config.json", "model-extra.safetensors", "polar_state.safetensors", "tq_config.json",
        "tq_recipe.toml", *checkpoints.SIDE_FILES,
    }  # fmt: skip


def test_sizes_are_those_of_the_published_files(output):
    state = checkpoints.read_file(output / "polar_state.safetensors")
    key = "model.language_model.layers.0.mlp.down_proj.weight"
    assert state[key + "__packed"][:2] == ("U8", (128 * 2 * 80,))
    assert state[key + "__norms"][:2] == ("F16", (128, 2))
    assert np.frombuffer(state[key + "__meta"][2], np.int64).tolist() == [128, 2, 128, 32768, 160]


def test_large_folders_are_divided_and_stay_whole(gemma_folder, tmp_path):
    succeed("convert", gemma_folder, tmp_path / "out", "-r", "hlwq-q5", "--shard-size", "60KB")
    names = [path.name for path in sorted(tmp_path.glob("out/*.safetensors"))]
    assert names == [
        "model-extra.safetensors", *(f"polar_state-0000{number}-of-00007.safetensors" for number in range(1, 8))
    ]  # fmt: skip
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    succeed("inspect", tmp_path / "out", "--verify", "--source", gemma_folder, "--all")
    (tmp_path / "out" / names[-1]).unlink()
    assert "incomplete" in tq("inspect", tmp_path / "out").stderr


def test_a_second_run_finds_the_folder_whole_and_another_replaces_it(gemma_folder, tmp_path):
    succeed("convert", gemma_folder, tmp_path / "out", "-r", "hlwq-q5")
    assert "found    " in succeed("convert", gemma_folder, tmp_path / "out", "-r", "hlwq-q5").stdout
    assert tq("convert", gemma_folder, tmp_path / "out", "-r", "hlwq-q4").code == 2
    succeed("convert", gemma_folder, tmp_path / "out", "-r", "hlwq-q4", "--overwrite")
    assert load(tmp_path / "out" / "hlwq_config.json")["bits"] == 4
    succeed("convert", gemma_folder, tmp_path / "out", "-r", "tq3", "--overwrite")
    assert not (tmp_path / "out" / "hlwq_config.json").exists()
    assert not (tmp_path / "out" / "polar_state.safetensors").exists()


def test_a_run_that_ended_between_the_documents_goes_on(gemma_folder, tmp_path, monkeypatch):
    original = converting.write_atomically

    def stops(path, content):
        if path.name == "config.json":
            raise KeyboardInterrupt
        original(path, content)

    monkeypatch.setattr(converting, "write_atomically", stops)
    assert tq("convert", gemma_folder, tmp_path / "out", "-r", "hlwq-q5").code == 130
    assert (tmp_path / "out" / "hlwq_config.json").exists()
    monkeypatch.setattr(converting, "write_atomically", original)
    succeed("convert", gemma_folder, tmp_path / "out", "-r", "hlwq-q5")


def test_hlwq_config_says_how_to_decode(output):
    said = load(output / "hlwq_config.json")
    assert {key: said[key] for key in ("method", "format", "bits", "block_size", "table", "packing", "base_model")} == {
        "method": "hlwq", "format": "hlwq-q5", "bits": 5, "block_size": 128, "table": "truncated",
        "packing": "highest-first", "base_model": "gemma",
    }  # fmt: skip
    np.testing.assert_array_equal(np.array(said["levels"]["truncated 5"], np.float32), levels("truncated", 5))
    stats = said["stats"]
    assert stats["weights"] == 29
    assert stats["bytes"] == sum(
        len(one[2]) for one in checkpoints.read_file(output / "polar_state.safetensors").values()
    )


def test_config_is_the_sources_with_the_published_section(output, gemma_folder):
    source, written = load(gemma_folder / "config.json"), load(output / "config.json")
    section = written.pop("quantization_config")
    assert written.pop("transformers_weights") == GUARD
    assert written == source
    layers = section.pop("layers")
    assert section == {
        "quant_method": "polarengine", "format": "hlwq-q5", "bits": 5, "block_size": 128, "table": "truncated",
        "bit_assignment": {}, "tool": f"tqcli {__version__}",
    }  # fmt: skip
    assert layers["model.language_model.layers.0.mlp.down_proj"] == {
        "in_features": 160, "out_features": 128, "in_features_padded": 256, "n_blocks": 2, "bits": 5, "block_size": 128,
    }  # fmt: skip
    assert not [name for name in layers if ".experts." in name]


def test_a_table_of_our_own_is_another_method_to_published_readers(gemma_folder, tmp_path):
    succeed("convert", gemma_folder, tmp_path / "out", "-r", "hlwq-q5", "--set", "table=lloyd-max")
    assert load(tmp_path / "out" / "config.json")["quantization_config"]["quant_method"] == "hlwq"
    assert load(tmp_path / "out" / "hlwq_config.json")["table"] == "lloyd-max"
    (note,) = read(opened(tmp_path / "out")).notes
    assert note == "29 weights are HLWQ, bit-packed; levels `lloyd-max`, as the folder says"


@pytest.mark.parametrize("bits", BITS)
def test_there_and_back(bits, tmp_path):
    """Each freed weight is the decode of what it was, rounded; everything else has its bytes."""
    succeed("convert", TINY, tmp_path / "out", "-r", f"hlwq-q{bits}")
    succeed("convert", tmp_path / "out", tmp_path / "freed", "-r", "bf16")
    source, freed = values_of(TINY), values_of(tmp_path / "freed")
    assert freed.keys() == source.keys()
    stored_as = Hlwq.model_validate({"bits": bits})
    decisions = {one.weight.selector for one in plan_job(Job(str(TINY), f"hlwq-q{bits}")).packed}
    assert len(decisions) == 35
    for name, values in source.items():
        expected = values
        if name in decisions:
            matrix = values.reshape(-1, values.shape[-1])
            expected = bf16(stored_as.decode(stored_as.encode(matrix, "F32"), matrix.shape[1])).reshape(values.shape)
        np.testing.assert_array_equal(freed[name], expected)


def test_a_norm_that_float16_cannot_hold_is_said_to_be_that(tmp_path):
    source = checkpoints.gemma(tmp_path / "in")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    values = np.zeros((160, 128), np.float32)
    values[77, :2] = 1e5
    checkpoints.rewrite(source, {name: ("BF16", values.shape, checkpoints.to_bytes(values, "BF16"))})
    result = tq("convert", source, tmp_path / "out", "-r", "hlwq-q5")
    assert result.code == 2
    assert (
        f"error: `{name}` does not fit the format\n"
        "  why: row 77 holds a block of 128 weights whose norm is too large for float16\n"
        "  fix: `keep` it, by an override in the recipe\n"
    ) in result.stderr


def test_experts_one_by_one_become_slices_and_come_back(qwen_folder, tmp_path):
    succeed("convert", qwen_folder, tmp_path / "out", "-r", "hlwq-q8")
    packed = read(opened(tmp_path / "out")).packed
    experts = {f"model.layers.0.mlp.experts.{one}_e{i}" for one in ("gate_up_proj", "down_proj") for i in range(3)}
    assert experts <= packed.keys()
    assert packed["model.layers.0.mlp.experts.gate_up_proj_e1"].shape == (128, 128)
    assert packed["model.layers.0.mlp.experts.gate_up_proj_e1"].dtype == "F32"
    succeed("convert", tmp_path / "out", tmp_path / "freed", "-r", "bf16")
    source, freed = values_of(qwen_folder), values_of(tmp_path / "freed")
    assert freed.keys() == source.keys()
    for name, values in source.items():
        assert np.square(freed[name] - values).sum() <= 2e-4 * np.square(values).sum(), name


def test_mixtral_calls_its_matrices_otherwise(tmp_path):
    shapes = {"model.embed_tokens.weight": (32, 128), "model.layers.0.input_layernorm.weight": (128,)}
    inside = "model.layers.0.block_sparse_moe.experts"
    shapes |= {f"{inside}.{e}.{one}.weight": (64, 128) for e in range(2) for one in ("w1", "w3")}
    shapes |= {f"{inside}.{e}.w2.weight": (128, 64) for e in range(2)}
    tensors = {name: checkpoints.tensor(shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    checkpoints.write_checkpoint(tmp_path / "in", {"model_type": "mixtral", "num_hidden_layers": 1}, tensors)
    succeed("convert", tmp_path / "in", tmp_path / "out", "-r", "hlwq-q8")
    assert f"{inside}.gate_up_proj_e1" in read(opened(tmp_path / "out")).packed
    checkpoint = opened(tmp_path / "out")
    assert {one.name for one in original_weights(checkpoint, find(checkpoint.config))} == shapes.keys()
    succeed("inspect", tmp_path / "out", "--verify", "--source", tmp_path / "in")


def test_kept_experts_are_slices_too(gemma_folder, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('format = "hlwq"\nprotect = ["expert_gate", "expert_up", "expert_down", "vision"]\n')
    succeed("convert", gemma_folder, tmp_path / "out", "-r", recipe)
    assert f"{EXPERTS}.down_proj_e3" in checkpoints.read_file(tmp_path / "out" / "model-extra.safetensors")
    succeed("convert", tmp_path / "out", tmp_path / "freed", "-r", "bf16")
    source, freed = (checkpoints.read_file(one / "model.safetensors") for one in (gemma_folder, tmp_path / "freed"))
    assert freed.keys() == source.keys()
    assert freed[f"{EXPERTS}.down_proj"] == source[f"{EXPERTS}.down_proj"]


def plan_of(recipe, source):
    architecture, layout = find(source.config), find_layout("hlwq")
    originals = original_weights(source, architecture)
    arrangement = layout.arrange(originals, source)
    arrangement.check(originals)
    return make_plan(source, architecture, recipe, arrangement, lambda made: layout.lay_out(made, source, 5 * 10**9))


def test_the_published_set_of_gemma_4_26b_has_the_published_size(tmp_path):
    """207 linear layers with the embedding, 7680 slices of experts, 16.61 GB."""
    (tmp_path / "recipe.toml").write_text(PUBLISHED)
    packed = plan_of(load_recipe(str(tmp_path / "recipe.toml")), reference_model()).packed
    experts = [one for one in packed if one.role.expert is not None]
    assert (len(packed) - len(experts), len(experts)) == (207, 30 * 128 * 2)
    assert sum(one.nbytes for one in packed) == pytest.approx(16.606e9, rel=1e-4)


def weight(name, shape, roles, expert=None):
    source = TensorInfo(name, "BF16", shape, "f", 0, 2 * int(np.prod(shape)))
    role = TensorRole(roles, 0, name.rpartition(".experts.")[0] + ".experts", expert)
    return Weight(name, name, role, "BF16", shape, (Run(source, 0, int(np.prod(shape[:-1]))),))


def test_slices_and_stacks_are_each_others_way_back():
    stack = weight("m.layers.0.experts.gate_up_proj", (12, 6, 8), ("expert_gate", "expert_up"))
    slices = list(sliced(stack))
    assert [one.name for one in slices[9:]] == [f"{stack.name}_e{i}" for i in (9, 10, 11)]
    (whole,) = stacked(slices[::-1], {"num_experts": 12})
    assert (whole.name, whole.shape, whole.role.expert) == (stack.name, stack.shape, None)
    assert [run.first for run in whole.runs] == list(range(0, 72, 6))


@pytest.mark.parametrize("change", ["no up", "other shape", "other dtype"])
def test_what_is_no_pair_stays_apart(change):
    gate = weight("m.experts.0.gate_proj.weight", (4, 8), ("expert_gate",), 0)
    up = weight("m.experts.0.up_proj.weight", (4, 8), ("expert_up",), 0)
    assert [one.name for one in paired([up, gate])] == ["m.experts.gate_up_proj_e0"]
    assert [run.source.name for run in paired([up, gate])[0].runs] == [gate.name, up.name]
    others = {
        "no up": [gate],
        "other shape": [gate, weight(up.name, (2, 8), ("expert_up",), 0)],
        "other dtype": [gate, replace(up, dtype="F16")],
    }[change]
    assert list(paired(others)) == others


def test_plain_stacks_are_compared_slice_by_slice(gemma_folder):
    checkpoint = opened(gemma_folder)
    seen = in_slices(checkpoint, find(checkpoint.config))
    whole, part = checkpoint.tensors[f"{EXPERTS}.down_proj"], seen.tensors[f"{EXPERTS}.down_proj_e2"]
    assert (part.shape, part.nbytes, part.offset) == ((128, 96), whole.nbytes // 4, whole.offset + whole.nbytes // 2)
    assert len(seen.tensors) == len(checkpoint.tensors) + 4 * 3
