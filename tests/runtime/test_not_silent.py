"""Every fault in a checkpoint is an error that names the tensor, where transformers would make up weights."""

import json
import shutil

import pytest
import torch
from support import pack
from transformers import AutoModelForCausalLM, Gemma4ForCausalLM

import tqcli
from tqcli.errors import InputError, TqError


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


@pytest.fixture
def build(sources, tmp_path):
    """A function that writes a packed checkpoint after `change` had its way with the tensors."""

    def written(name, change=lambda tensors: None, section=None, shards=3, **options):
        tensors = pack.pack_tensors(sources[name])
        change(tensors)
        chosen = pack.our_section() if section is None else section
        return pack.write(sources[name], tmp_path / "x", tensors, shards=shards, section=chosen, **options)

    return written


def only(tensors, *parts):
    """The one tensor, or the first, whose name has all the parts."""
    return next(name for name in sorted(tensors) if all(part in name for part in parts))


REMOVED = [
    ("gemma4", ("layers.1.self_attn.q_proj", "tq_packed")),
    ("gemma4", ("layers.1.self_attn.q_proj", "tq_norms")),
    ("gemma4", ("layers.0.experts.gate_up_proj", "tq_norms")),
    ("gemma4", ("layers.2.input_layernorm",)),
    ("gemma4", ("layers.0.layer_scalar",)),
    ("gemma4", ("layers.0.router.proj",)),
    ("gemma4", ("vision_tower", "o_proj")),
    ("gemma4", ("embed_tokens",)),
    ("qwen3_moe", ("layers.1.mlp.experts.5.up_proj", "tq_packed")),
    ("qwen3_moe", ("layers.1.mlp.experts.5.up_proj", "tq_norms")),
    ("qwen3_moe", ("lm_head",)),
    ("qwen3_moe", ("layers.0.mlp.gate.weight",)),
    ("llama", ("layers.0.self_attn.q_proj.bias",)),
    ("llama", ("model.norm.weight",)),
]


@pytest.mark.parametrize(("name", "parts"), REMOVED, ids=[f"{name}-{'-'.join(parts)}" for name, parts in REMOVED])
def test_a_tensor_is_missing(name, parts, build):
    removed = []

    def change(tensors):
        removed.append(only(tensors, *parts))
        del tensors[removed[0]]

    folder = build(name, change)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert removed[0] in str(caught.value)


PAIRS = [
    ("gemma4", "model.language_model.layers.1.mlp.down_proj.weight"),
    ("gemma4", "model.language_model.layers.1.experts.down_proj"),
    ("qwen3_moe", "model.layers.0.mlp.experts.0.down_proj.weight"),
    ("qwen3_moe", "model.layers.0.mlp.experts.11.gate_proj.weight"),
    ("qwen3", "model.layers.1.self_attn.k_proj.weight"),
]


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_a_whole_pair_is_missing(name, base, build):
    def change(tensors):
        del tensors[base + ".tq_packed"], tensors[base + ".tq_norms"]

    with pytest.raises(InputError) as caught:
        load(build(name, change))
    assert base in str(caught.value)


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_a_pair_has_another_name(name, base, build):
    def change(tensors):
        for suffix in (".tq_packed", ".tq_norms"):
            tensors[base.replace("_proj", "_pro") + suffix] = tensors.pop(base + suffix)

    with pytest.raises(InputError) as caught:
        load(build(name, change))
    assert base.replace("_proj", "_pro") in str(caught.value)


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama"])
def test_a_plain_tensor_too_many(name, build):
    with pytest.raises(InputError) as caught:
        load(build(name, lambda tensors: tensors.update({"model.surplus.weight": torch.zeros(2, 2)})))
    assert "surplus.weight" in str(caught.value)


def test_one_expert_too_many(build):
    def change(tensors):
        for key in [key for key in tensors if "layers.0.mlp.experts.3." in key]:
            tensors[key.replace("experts.3.", "experts.12.")] = tensors[key].clone()

    with pytest.raises(InputError, match=r"experts\.12\."):
        load(build("qwen3_moe", change))


@pytest.mark.parametrize("shard", [1, 2, 3])
def test_a_shard_is_deleted(shard, build):
    folder = build("gemma4")
    (folder / f"model-{shard:05d}-of-00003.safetensors").unlink()
    with pytest.raises((TqError, OSError), match=r"model-0000|missing"):
        load(folder)


@pytest.mark.parametrize("shard", [1, 3])
def test_a_shard_is_deleted_and_the_index_cut_to_fit(shard, build):
    folder = build("gemma4")
    file = folder / f"model-{shard:05d}-of-00003.safetensors"
    file.unlink()
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {key: value for key, value in index["weight_map"].items() if value != file.name}
    path.write_text(json.dumps(index))
    with pytest.raises(InputError):
        load(folder)


@pytest.mark.parametrize("cut", [1, 100, 10_000])
def test_a_file_is_truncated(cut, build):
    folder = build("llama", shards=1)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"model\.safetensors.*truncated"):
        load(folder)


def test_a_tensor_in_two_files(build):
    folder = build("llama")
    path = folder / "model-00003-of-00003.safetensors"
    shutil.copy(folder / "model-00001-of-00003.safetensors", path)
    with pytest.raises(InputError, match="two files"):
        load(folder)


CHANGES = {
    "a row less": lambda codes, norms: (codes[: -codes.shape[0] // norms.shape[0]], norms[:-1]),
    "norms of another layout": lambda codes, norms: (codes, norms.reshape(-1, norms.shape[1] // 2)),
    "five bits": lambda codes, norms: (codes.repeat(1, 2)[:, :40].contiguous(), norms),
    "two bits, three declared": lambda codes, norms: (codes[:, :16].contiguous(), norms),
    "codes of another type": lambda codes, norms: (codes.to(torch.int8), norms),
    "norms of another type": lambda codes, norms: (codes, norms.half()),
    "three dimensions": lambda codes, norms: (codes.unsqueeze(0), norms),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("base", [PAIRS[1], PAIRS[2]], ids=["fused", "per-expert"])
def test_sizes_do_not_fit(base, change, sources, tmp_path):
    name, tensor = base
    tensors = pack.pack_tensors(sources[name], group_size=64)
    codes, norms = tensors[tensor + ".tq_packed"], tensors[tensor + ".tq_norms"]
    codes, norms = CHANGES[change](codes.view(len(codes), -1), norms)
    tensors[tensor + ".tq_packed"], tensors[tensor + ".tq_norms"] = codes.contiguous(), norms.contiguous()
    section = pack.our_section(group_size=64)
    folder = pack.write(sources[name], tmp_path / "x", tensors, section=section)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert tensor.rpartition(".experts.")[0] in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}], ids=["strict", "lax"])
def test_a_plain_tensor_of_another_shape(options, build):
    folder = build("llama", lambda tensors: tensors.update({"model.norm.weight": torch.ones(95)}))
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        load(folder, **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format_version": 3}, "format version 3"),
        ({"format_version": "1"}, "format_version"),
        ({"bits": 5}, "bits"),
        ({"bits": True}, "bits"),
        ({"group_size": 96}, "group_size"),
        ({"group_size": 64}, "norms a row"),
        ({"seed": -1}, "seed"),
        ({"bits": 4}, "4 bits"),
        ({"tensors": {"model.layers.0.mlp.up_proj.weight": {"bits": 4}}}, "up_proj"),
        ({"tensors": {"model.layers.0.mlp.up_proj.weight": {"bits": 7}}}, "up_proj"),
        ({"tensors": ["x"]}, "tensors"),
    ],
)
def test_the_section_is_not_as_it_should_be(changed, message, build):
    with pytest.raises(InputError, match=message):
        load(build("llama", section={**pack.our_section(), **changed}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "tq9_native", "bits": 3}', "tq9_native"),
        ("{", "JSON"),
        ("[]", "object"),
        ('{"format": "tq3_native", "bits": 6, "group_size": 128}', "bits"),
        ('{"format": "tq3_native", "bits": 3, "group_size": 128, "format_version": 9}', "version 9"),
    ],
)
def test_tq_config_is_not_as_it_should_be(content, message, sources, tmp_path):
    folder = pack.write(sources["llama"], tmp_path / "x", pack.pack_tensors(sources["llama"]))
    (folder / "tq_config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize("shards", [1, 3])
def test_nothing_says_that_it_is_packed(shards, sources, tmp_path):
    folder = pack.write(sources["llama"], tmp_path / "x", pack.pack_tensors(sources["llama"]), shards=shards)
    with pytest.raises(InputError, match=r"tq_packed.*nothing that says"):
        load(folder)


def test_a_hand_made_config_does_not_hide_it(ours, published):
    """The user's own config object knows nothing of packing; the folder does."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(published["llama"])
    config.name_or_path = ""
    model = load(published["llama"], config=config)
    assert model.hf_quantizer.pre_quantized


def test_a_section_that_the_caller_hides(sources, tmp_path):
    """`quantization_config=None` replaces what config.json says; transformers would load random weights."""
    folder = pack.write(
        sources["llama"], tmp_path / "x", pack.pack_tensors(sources["llama"]), section=pack.our_section()
    )
    model = load(folder, quantization_config=None)
    assert model.hf_quantizer.pre_quantized


def test_the_text_part_alone_without_tq_config(sources, tmp_path):
    tensors = pack.pack_tensors(sources["gemma4"])
    folder = pack.write(sources["gemma4"], tmp_path / "x", tensors, section=pack.our_section())
    with pytest.raises(InputError):
        Gemma4ForCausalLM.from_pretrained(folder)


def test_the_text_part_alone_of_a_model_with_vision(ours):
    """Its config is cut out of the whole one, and the section with it."""
    with pytest.raises(InputError):
        Gemma4ForCausalLM.from_pretrained(ours["gemma4"])


def test_a_tied_head_that_is_packed_as_well(build):
    def change(tensors):
        for suffix in (".tq_packed", ".tq_norms"):
            source = "model.layers.0.mlp.gate_proj.weight"
            tensors["lm_head.weight" + suffix] = tensors[source + suffix].repeat(2, 1).contiguous()

    with pytest.raises(InputError, match="lm_head"):
        load(build("llama", change))


def test_weights_in_another_file_format(sources, ours, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    shutil.copy(ours["llama"] / "config.json", folder)
    torch.save(pack.tensors_of(sources["llama"]), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load(folder)


def test_errors_are_the_ones_that_tqcli_shows():
    assert tqcli.InputError is InputError


def test_packed_tensors_that_the_model_does_without(build, monkeypatch):
    """Such as a head for several tokens, which some models name as ignored: no error, packed or not."""
    from transformers import LlamaForCausalLM

    def change(tensors):
        for suffix in (".tq_packed", ".tq_norms"):
            tensors["mtp.0.proj.weight" + suffix] = tensors["model.layers.0.mlp.up_proj.weight" + suffix].clone()

    folder = build("llama", change)
    with pytest.raises(InputError, match=r"mtp\.0\.proj"):
        load(folder)
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"^mtp.*"])
    load(folder)
