"""`quantization_config=TqConfig(...)` on a plain checkpoint: the bytes of a conversion, made while loading."""

import json

import pytest
import torch
from support import mixed, pack
from support.plain_decode import reference
from transformers import AutoModelForCausalLM

import tqcli
from tqcli.errors import InputError
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform
from tqcli.runtime.transformers.selection import DEFAULT_SKIP, is_skipped
from tqcli.runtime.transformers.weight import TqWeight


def compress(folder, dtype="auto", **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=tqcli.TqConfig(**options))


@pytest.mark.parametrize("scale", ["norm", "search"])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama"])
def test_the_bytes_are_those_of_a_conversion(name, scale, sources, tmp_path):
    model = compress(sources[name], scale=scale)
    model.save_pretrained(tmp_path / "x")
    saved, expected = pack.tensors_of(tmp_path / "x"), pack.pack_tensors(sources[name], scale=scale)
    assert sorted(saved) == sorted(expected)
    for key, tensor in expected.items():
        assert torch.equal(saved[key], tensor), key
        assert saved[key].dtype == tensor.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "qwen3"])
def test_logits(name, dtype, sources, ours, ids):
    model = compress(sources[name], dtype, scale="norm")
    expected = reference(sources[name], ours[name], dtype)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_other_geometry(sources, ids):
    model = compress(sources["llama"], bits=4, group_size=32, seed=9)
    weights = [module for module in model.modules() if isinstance(module, TqWeight)]
    assert weights
    assert {(w.stored_as.bits, w.stored_as.group_size, w.stored_as.seed) for w in weights} == {(4, 32, 9)}


@pytest.mark.parametrize("options", [{}, {"bits": 2, "rotation": "none", "candidates": 1}, {"bits": 4, "seed": 9}])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama"])
def test_trellis(name, options, sources, tmp_path, ids):
    """The bytes, and the section, of a conversion."""
    stored_as = Trellis.model_validate({"bits": 3, **options})
    tensors, formats = mixed.pack_tensors(
        sources[name], lambda one, shape: stored_as if pack.is_packed_by_default(one, list(shape)) else None
    )
    model = compress(sources[name], format="trellis", **options)
    model.save_pretrained(tmp_path / "x")
    saved = pack.tensors_of(tmp_path / "x")
    assert sorted(saved) == sorted(tensors)
    assert all(torch.equal(saved[key], tensor) for key, tensor in tensors.items())
    section = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    assert section == mixed.section(stored_as, formats)
    expected = mixed.reference(sources[name], tensors, formats, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama", "qwen3"])
def test_embeddings(name, bits, sources, tmp_path, ids):
    """The table, and the head: tied to it, or a matrix of its own."""

    def choose(one, shape):
        if "embed_tokens" in one or "lm_head" in one:
            return Uniform(bits=bits)
        return Tq(bits=3) if pack.is_packed_by_default(one, list(shape)) else None

    tensors, formats = mixed.pack_tensors(sources[name], choose)
    model = compress(sources[name], embeddings=bits)
    model.save_pretrained(tmp_path / "x")
    saved = pack.tensors_of(tmp_path / "x")
    assert sorted(saved) == sorted(tensors)
    assert all(torch.equal(saved[key], tensor) for key, tensor in tensors.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype=torch.bfloat16)
    expected = mixed.reference(sources[name], tensors, formats, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
        assert torch.equal(again(ids).logits, expected(ids).logits)


def test_one_config_for_several_models(sources, tmp_path):
    """Saving one of them leaves it as it was."""
    config = tqcli.TqConfig(embeddings=8)
    for name in ("llama", "qwen3"):
        model = AutoModelForCausalLM.from_pretrained(sources[name], quantization_config=config)
        model.save_pretrained(tmp_path / name)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert isinstance(again.get_input_embeddings().weight, TqWeight)


def test_embeddings_that_the_callers_list_names(sources):
    model = compress(sources["qwen3"], embeddings=8, modules_to_not_convert=["lm_head"])
    assert isinstance(model.get_input_embeddings().weight, TqWeight)
    assert not isinstance(model.get_output_embeddings().weight, TqWeight)


def test_an_embedding_whose_tied_head_is_on_disk_too(sources, tmp_path, caplog, ids):
    """transformers says which of the two counts; nothing is packed that it might not take."""
    tensors = pack.tensors_of(sources["llama"])
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    folder = pack.write(sources["llama"], tmp_path / "x", tensors)
    model, expected = compress(folder, embeddings=8), compress(sources["llama"])
    assert "embed_tokens" in caplog.text
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_columns_that_a_trellis_cannot_have_stay_as_they_are(tmp_path, caplog):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=72, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = compress(tmp_path, format="trellis")
    assert isinstance(model.model.layers[0].mlp.up_proj.weight, TqWeight)
    assert not isinstance(model.model.layers[0].mlp.down_proj.weight, TqWeight)
    assert "72 columns" in caplog.text


def test_modules_to_not_convert(sources):
    model = compress(sources["llama"], modules_to_not_convert=["lm_head", "self_attn", "layers.1.mlp.up_proj"])
    packed = {name.removesuffix(".weight") for name, module in model.named_modules() if isinstance(module, TqWeight)}
    prefix = "model.layers"
    assert packed == {
        f"{prefix}.{part}"
        for part in ("0.mlp.up_proj", "0.mlp.gate_proj", "0.mlp.down_proj", "1.mlp.gate_proj", "1.mlp.down_proj")
    }


def test_default_leaves_out_routers_embeddings_head_and_vision(sources):
    for name in ("gemma4", "qwen3_moe"):
        model = compress(sources[name])
        packed = [path for path, module in model.named_modules() if isinstance(module, TqWeight)]
        assert len(packed) > 10
        assert not [
            path for path in packed if any(part in path for part in ("router", "mlp.gate.", "embed", "head", "vision"))
        ]


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("model.layers.0.mlp.gate_proj.weight", False),
        ("model.layers.0.mlp.gate.weight", True),
        ("model.layers.0.router.proj.weight", True),
        ("lm_head.weight", True),
        ("model.headings.0.weight", False),
        ("model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight", True),
    ],
)
def test_matching_is_by_whole_path_components(name, skipped):
    assert is_skipped(name, DEFAULT_SKIP) is skipped


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(bad, sources, tmp_path):
    tensors = pack.tensors_of(sources["llama"])
    tensors["model.layers.1.mlp.down_proj.weight"][3, 7] = bad
    folder = pack.write(sources["llama"], tmp_path / "x", tensors)
    with pytest.raises(Exception, match=r"conversion|layers\.1\.mlp\.down_proj"):
        compress(folder)


def test_a_missing_tensor_of_the_plain_checkpoint(sources, tmp_path):
    tensors = pack.tensors_of(sources["llama"])
    del tensors["model.layers.1.mlp.down_proj.weight"]
    folder = pack.write(sources["llama"], tmp_path / "x", tensors)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.down_proj"):
        compress(folder)


def test_a_typing_error_in_an_option():
    with pytest.raises(TypeError):
        tqcli.TqConfig(bit=3)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 1},
        {"bits": True},
        {"seed": -1},
        {"group_size": 100},
        {"scale": "best"},
        {"modules_to_not_convert": "lm_head"},
        {"format": "uniform"},
        {"embeddings": 3},
        {"embeddings": True},
        {"rotation": "none"},
        {"format": "trellis", "rotation": "fourier"},
        {"format": "trellis", "candidates": 2},
        {"format": "trellis", "group_size": 128},
        {"format": "trellis", "scale": "search"},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(InputError):
        tqcli.TqConfig(**options)


def test_a_parameter_is_encoded_in_pieces(sources, tmp_path, monkeypatch):
    """The pieces join to the bytes of the whole."""
    from tqcli.runtime.transformers import operations

    monkeypatch.setattr(operations, "_CHUNK_BYTES", 5000)
    compress(sources["gemma4"], scale="norm").save_pretrained(tmp_path / "x")
    saved, expected = pack.tensors_of(tmp_path / "x"), pack.pack_tensors(sources["gemma4"])
    assert all(torch.equal(saved[key], tensor) for key, tensor in expected.items())


def test_an_already_packed_checkpoint_stays_as_it_is(ours):
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = compress(ours["llama"], bits=4)
    assert {w.stored_as.bits for w in model.modules() if isinstance(w, TqWeight)} == {3}


def test_a_tensor_too_many_in_the_plain_checkpoint(sources, tmp_path):
    """Left to transformers, which says so in its log: nothing is lost."""
    tensors = {**pack.tensors_of(sources["llama"]), "surplus": torch.zeros(2)}
    compress(pack.write(sources["llama"], tmp_path / "x", tensors))


def test_a_map_of_tensors_is_for_packed_checkpoints(sources):
    tensors = {"model.layers.0.mlp.up_proj.weight": {"bits": 4}}
    config = tqcli.TqConfig.from_dict({"quant_method": "turboquant", "bits": 3, "tensors": tensors})
    with pytest.raises(InputError, match="tensors"):
        AutoModelForCausalLM.from_pretrained(sources["llama"], quantization_config=config)
