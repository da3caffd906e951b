"""Folders with tq, trellis and uniform weights side by side: packed in memory, and equal to the decoded to the bit."""

import json

import pytest
import torch
from support import mixed, pack, tiny_models
from transformers import AutoModelForCausalLM

from tqcli.formats.native import PAIRS
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform
from tqcli.runtime.transformers.modules import TqEmbedding, TqLinear, TqTiedHead
from tqcli.runtime.transformers.weight import TqWeight

MODELS = sorted(tiny_models.BUILDERS)


@pytest.fixture(scope="module")
def folders(sources, tmp_path_factory):
    """Name of the model -> folder, tensors, formats."""
    root = tmp_path_factory.mktemp("mixed")
    found = {}
    for name, source in sources.items():
        tensors, formats = mixed.pack_tensors(source)
        found[name] = mixed.write(source, root / name, tensors, formats), tensors, formats
    return found


def load(folder, dtype=torch.float32, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def packed(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TqWeight)}


def endings(tensors):
    return {name: tensor for name, tensor in tensors.items() if name.endswith(sum(PAIRS.values(), ()))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_decoded_weights(name, dtype, sources, folders, ids):
    folder, tensors, formats = folders[name]
    model, expected = load(folder, dtype), mixed.reference(sources[name], tensors, formats, dtype)
    assert torch.equal(logits(model, ids), logits(expected, ids))


@pytest.mark.parametrize("name", MODELS)
def test_all_formats_are_there_and_stay_packed(name, folders):
    folder, tensors, formats = folders[name]
    held = packed(load(folder)).values()
    assert {weight.stored_as.format for weight in held} == set(PAIRS)
    decoded_once = [
        tensors[base + ending] for base in formats if "mlp.gate." in base for ending in endings_of(formats[base])
    ]
    on_disk = sum(tensor.nbytes for tensor in endings(tensors).values()) - sum(one.nbytes for one in decoded_once)
    assert sum(part.nbytes for weight in held for part in weight.parts) == on_disk
    assert not any(parameter.requires_grad for weight in held for parameter in weight.parameters())


def endings_of(stored_as):
    return PAIRS[stored_as.format]


@pytest.mark.parametrize("name", MODELS)
def test_embedding_and_head(name, folders):
    """8-bit rows: the table shared with a tied head, or one for each."""
    model = load(folders[name][0])
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, TqEmbedding)
    assert embedding.weight.stored_as == Uniform(bits=8)
    if name in ("gemma4", "llama"):
        assert isinstance(head, TqTiedHead)
        assert head.weight is embedding.weight
    else:
        assert isinstance(head, TqLinear)
        assert head.weight.stored_as == Uniform(bits=8, group_size=32)
    dtypes = [part.dtype for part in embedding.weight.parts]
    assert dtypes == [torch.int8, torch.float16]


def test_only_the_rows_that_are_looked_up_are_decoded(folders, ids, monkeypatch):
    from tqcli.runtime.transformers import weight as module

    model, decoded = load(folders["gemma4"][0]), []
    original = module.decode_packed

    def counting(stored_as, codes, *others, **options):
        result = original(stored_as, codes, *others, **options)
        decoded.append(len(result))
        return result

    monkeypatch.setattr(module, "decode_packed", counting)
    model.get_input_embeddings()(ids)
    assert decoded == [ids.numel()]


def test_a_tied_head_is_decoded_in_pieces(folders, ids, monkeypatch):
    from tqcli.runtime.transformers import modules

    model = load(folders["llama"][0])
    whole = logits(model, ids)
    monkeypatch.setattr(modules, "_HEAD_WEIGHTS", 96 * 50)
    torch.testing.assert_close(logits(model, ids), whole)


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe"])
def test_generates_the_same_tokens(name, sources, folders, ids):
    folder, tensors, formats = folders[name]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = mixed.reference(sources[name], tensors, formats, torch.float32)
    assert torch.equal(load(folder).generate(ids, **options), expected.generate(ids, **options))


def test_threads_change_nothing(folders, ids, monkeypatch):
    from tq_kernels import tensor_rows

    expected = logits(load(folders["qwen3_moe"][0]), ids)
    monkeypatch.setattr(tensor_rows, "_PIECE_BYTES", 1000)
    torch.set_num_threads(3)
    model = load(folders["qwen3_moe"][0])
    weights = [weight.decode() for weight in packed(model).values()]
    torch.set_num_threads(1)
    assert all(torch.equal(one, weight.decode()) for one, weight in zip(weights, packed(model).values(), strict=True))
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("name", MODELS)
def test_saved_as_it_was(name, folders, ids, tmp_path):
    folder, _, formats = folders[name]
    model = load(folder, torch.bfloat16)
    model.save_pretrained(tmp_path / "x", max_shard_size="200KB")
    before, after = pack.tensors_of(folder), pack.tensors_of(tmp_path / "x")
    # A router that is no linear layer is plain in memory, and is saved so.
    routers = {base for base in formats if "mlp.gate." in base}
    assert {key for key in after if key not in routers} == {
        key for key in before if not key.startswith(tuple(routers) or "-")
    }
    assert all(torch.equal(before[key], tensor) for key, tensor in after.items() if key not in routers)
    section = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    record = json.loads((tmp_path / "x" / "tq_config.json").read_text())
    kept = {base: stored_as for base, stored_as in formats.items() if base not in routers}
    wanted = mixed.section(mixed.DEFAULT, kept)
    assert section == {**wanted, "tool": section["tool"]}
    assert (record["format"], record["format_version"]) == ("tq_native", 2)
    assert record["codebooks"] == mixed.codebooks(kept.values())
    assert {
        base: {key: value for key, value in one.items() if key != "shape"} for base, one in record["tensors"].items()
    } == {base: mixed.entry(stored_as) for base, stored_as in kept.items()}
    assert torch.equal(logits(load(tmp_path / "x", torch.bfloat16), ids), logits(model, ids))


@pytest.mark.parametrize("name", MODELS)
def test_dequantize(name, sources, folders, ids, tmp_path):
    folder, tensors, formats = folders[name]
    model = load(folder).dequantize()
    expected = mixed.reference(sources[name], tensors, formats, torch.float32)
    assert not packed(model)
    assert torch.equal(logits(model, ids), logits(expected, ids))
    model.save_pretrained(tmp_path / "x")
    assert not endings(pack.tensors_of(tmp_path / "x"))
    assert "quantization_config" not in json.loads((tmp_path / "x" / "config.json").read_text())


def test_moving_to_a_dtype_keeps_what_is_packed(folders, sources, ids):
    folder, tensors, formats = folders["llama"]
    for dtype in (torch.bfloat16, torch.float16):
        expected = mixed.reference(sources["llama"], tensors, formats, torch.float32).to(dtype)
        assert torch.equal(logits(load(folder).to(dtype), ids), logits(expected, ids))


def test_modules_that_stay_in_float32(folders, monkeypatch):
    """Some models want some weights in it whatever the dtype: those are decoded to it, and stay packed as they were."""
    from transformers import LlamaForCausalLM

    before = packed(load(folders["llama"][0], torch.float32))
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["mlp", "self_attn", "embed_tokens"])
    after = packed(load(folders["llama"][0], torch.bfloat16))
    assert before.keys() == after.keys()
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    for name, weight in after.items():
        assert [part.dtype for part in weight.parts] == [part.dtype for part in before[name].parts]
        assert torch.equal(weight.decode(), before[name].decode())


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe"])
def test_tq_config_alone_is_enough(name, sources, folders, ids, tmp_path):
    """config.json has lost its section, as where another tool wrote it anew."""
    folder, tensors, formats = folders[name]
    copy = pack.write(sources[name], tmp_path / "x", tensors, tq_config=mixed.record(formats))
    assert torch.equal(logits(load(copy), ids), logits(load(folder), ids))


def test_config_json_alone_is_enough(sources, folders, ids, tmp_path):
    folder, tensors, formats = folders["llama"]
    section = mixed.section(mixed.DEFAULT, formats)
    copy = pack.write(sources["llama"], tmp_path / "x", tensors, section=section)
    assert torch.equal(logits(load(copy), ids), logits(load(folder), ids))


def test_the_stored_codebook_is_the_one_that_counts(sources, ids, tmp_path):
    """Another writer may have found other levels."""
    mirrored = bytes(-level % 256 for level in bytes.fromhex(Trellis(bits=3).levels)).hex()
    other = Trellis(bits=3, codebook=mirrored)
    tensors, formats = mixed.pack_tensors(sources["llama"], lambda name, _: other if "q_proj.weight" in name else None)
    folder = mixed.write(sources["llama"], tmp_path / "x", tensors, formats, other)
    expected = mixed.reference(sources["llama"], tensors, formats, torch.float32)
    model = load(folder)
    assert torch.equal(logits(model, ids), logits(expected, ids))
    model.save_pretrained(tmp_path / "y")
    saved = json.loads((tmp_path / "y" / "config.json").read_text())["quantization_config"]
    assert saved["codebooks"] == {"3": mirrored}
