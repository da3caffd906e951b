"""Compressed-tensors folders as models: every parameter is what its weight decodes to, and no expert is made up."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support import pack
from support.command import succeed
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig, AutoModelForCausalLM, Gemma4ForCausalLM

import tqcli
from tqcli.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ROOT / "tests" / "fixtures" / "tiny_gemma4"
PEER = ROOT / ".venv-llmcompressor" / "bin" / "python"
RECIPES = {
    "fp8-dynamic": ("-r", "fp8-dynamic"),
    "fp8-block": ("-r", "fp8-block"),
    "w4a16": ("-r", "w4a16", "--set", "group_size=32"),
    "mxfp4": ("-r", "mxfp4"),
    "nvfp4a16": ("-r", "nvfp4a16"),
}
MODELS = ("gemma4", "qwen3_moe", "llama")


@pytest.fixture(scope="module")
def folders(sources, tmp_path_factory):
    """(model, recipe) -> folder, made when it is asked for."""
    root = tmp_path_factory.mktemp("compressed")
    made: dict[tuple[str, str], Path] = {}

    def folder(model: str, recipe: str) -> Path:
        if (model, recipe) not in made:
            source = TRAINED if model == "trained" else sources[model]
            made[model, recipe] = root / f"{model}-{recipe}"
            succeed("convert", source, made[model, recipe], *RECIPES[recipe])
        return made[model, recipe]

    return folder


@pytest.fixture
def copy(folders, tmp_path):
    """A folder without our record, as another tool would have left it, to be damaged."""

    def copied(model: str, recipe: str) -> Path:
        folder = Path(shutil.copytree(folders(model, recipe), tmp_path / "copy"))
        for name in ("tq_config.json", "tq_recipe.toml"):
            (folder / name).unlink()
        return folder

    return copied


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits.float()


# Decoded here a second time, from the descriptions of the formats, with nothing of tqcli.

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def decode(module: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """float32, not rounded."""
    scale = tensors[module + ".weight_scale"]
    if module + ".weight" in tensors:
        codes = tensors[module + ".weight"].float()
        block = 1 if scale.shape[0] == codes.shape[0] else 128
        rows = scale.float().repeat_interleave(block, 0)[: len(codes)]
        return codes * rows.repeat_interleave(128 if block > 1 else codes.shape[1], 1)[:, : codes.shape[1]]
    words = tensors[module + ".weight_packed"]
    if words.dtype == torch.int32:
        shifts = torch.arange(0, 32, 4)
        numbers = ((words.unsqueeze(-1) >> shifts) & 15).reshape(len(words), -1).float() - 8
    else:
        numbers = FP4[torch.stack([words & 15, words >> 4], -1).reshape(len(words), -1).long()]
    if scale.dtype == torch.uint8:
        scale = torch.exp2(scale.float() - 127)
    if module + ".weight_global_scale" in tensors:
        scale = scale.float() / tensors[module + ".weight_global_scale"].float()
    return numbers * scale.float().repeat_interleave(numbers.shape[1] // scale.shape[1], 1)


def expected_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weight's name -> its value in the dtype of the checkpoint."""
    tensors = pack.tensors_of(folder)
    modules = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    found = {f"{module}.weight": decode(module, tensors).bfloat16() for module in modules}
    inside = (".weight_scale", ".weight_packed", ".weight_shape", ".weight_global_scale")
    return found | {name: one for name, one in tensors.items() if name not in found and not name.endswith(inside)}


def parameter(slots: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The parameter or buffer of that name, or the part of all experts' that one expert's matrix is."""
    if name in slots:
        return slots[name]
    before, _, after = name.partition(".experts.")
    expert, projection, _ = after.split(".")
    stack = slots[f"{before}.experts.{'down_proj' if projection == 'down_proj' else 'gate_up_proj'}"][int(expert)]
    half = len(stack) // 2
    return {"down_proj": stack, "gate_proj": stack[:half], "up_proj": stack[half:]}[projection]


def check_parameters(model, folder: Path, dtype=torch.bfloat16) -> int:
    """Every tensor of the folder is in the model, and the model has no others; returns how many were compressed."""
    slots = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    expected = expected_tensors(folder)
    for name, value in expected.items():
        found = parameter(slots, name)
        # Rounded to the checkpoint's dtype first, as the original was.
        assert torch.equal(found, value.to(found.dtype).view(found.shape)), name
        assert found.dtype == dtype or name.endswith(("scale", "scalar", "bias")), name
    filled = sum(value.numel() for value in expected.values())
    assert filled == sum(one.numel() for one in model.state_dict().values()) - tied(model)
    return sum(name.endswith(".weight_scale") for name in pack.tensors_of(folder))


def tied(model) -> int:
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return head.numel() if head is embedding else 0


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_every_parameter(model, recipe, folders):
    loaded, tokenizer = tqcli.load(folders(model, recipe))
    assert check_parameters(loaded, folders(model, recipe)) > 10
    assert not loaded.training
    assert loaded.dtype == torch.bfloat16
    text = tokenizer("the quick brown fox", return_tensors="pt")
    assert loaded.generate(**text, max_new_tokens=2, do_sample=False, pad_token_id=0).shape[1] > 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_folders_are_loaded_alike(recipe, folders, copy, ids):
    ours, theirs = (tqcli.load(folder)[0] for folder in (folders("gemma4", recipe), copy("gemma4", recipe)))
    assert torch.equal(logits(ours, ids), logits(theirs, ids))


@pytest.mark.parametrize(
    ("recipe", "cosine", "top1"),
    [
        ("fp8-dynamic", 0.9995, 0.9),
        ("fp8-block", 0.9995, 0.9),
        ("w4a16", 0.9985, 0.8),
        ("mxfp4", 0.998, 0.8),
        ("nvfp4a16", 0.998, 0.8),
    ],
)
def test_a_trained_model_answers_as_before(recipe, cosine, top1, folders, ids):
    """A random expert in one of the four layers would bring the cosine of FP8 to 0.9986."""
    before = logits(tqcli.load(TRAINED, dtype=torch.float32)[0], ids)
    after = logits(tqcli.load(folders("trained", recipe), dtype=torch.float32)[0], ids)
    assert cosine_similarity(before, after, -1).mean() > cosine
    assert (before.argmax(-1) == after.argmax(-1)).float().mean() >= top1


class TestFromPretrained:
    @pytest.mark.parametrize("recipe", RECIPES)
    def test_experts_one_by_one_for_a_model_that_has_them_in_one_tensor(self, recipe, folders, ids):
        """transformers' own loader finds no place for them and goes on with random ones."""
        model, info = load(folders("gemma4", recipe), output_loading_info=True)
        assert not info["missing_keys"]
        check_parameters(model, folders("gemma4", recipe))
        assert torch.equal(logits(model, ids), logits(tqcli.load(folders("gemma4", recipe))[0], ids))

    def test_what_the_stock_loader_makes_of_it(self, folders):
        """The reason for all this; once it is mended upstream, our part can go."""
        code = (
            "import sys, logging; from transformers import AutoModelForCausalLM as A\n"
            "try: _, info = A.from_pretrained(sys.argv[1], output_loading_info=True)\n"
            "except Exception as error: print(type(error).__name__)\n"
            "else: print(len(info['missing_keys']))"
        )
        done = run_python(code, folders("gemma4", "fp8-dynamic"))
        assert done == "ImportError" or int(done) >= 6

    @pytest.mark.parametrize("model", ["llama", "qwen3_moe"])
    def test_what_transformers_can_read_is_left_to_it(self, model, folders, monkeypatch):
        """Its loader needs compressed-tensors, and says so where it is not installed."""
        called = []
        from tqcli.runtime.transformers import decoded

        monkeypatch.setattr(decoded, "_load", lambda *_: called.append("ours"))
        with suppress(ImportError):
            load(folders(model, "fp8-dynamic"))
        assert called == []

    def test_the_text_part_alone_of_a_model_with_vision(self, folders):
        """transformers would begin with random weights, and say so in a log line."""
        with pytest.raises(InputError, match="is another model"):
            Gemma4ForCausalLM.from_pretrained(folders("gemma4", "fp8-dynamic"))

    def test_a_config_that_the_caller_brings(self, folders, ids):
        folder = folders("gemma4", "fp8-dynamic")
        config = AutoConfig.from_pretrained(folder)
        model = load(folder, config=config)
        check_parameters(model, folder)
        assert getattr(model.config, "quantization_config", None) is None
        # The caller's own object is not changed under their hands.
        assert config.quantization_config["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_dtype_that_is_asked_for(dtype, folders):
    """What the weight decodes to in the checkpoint's dtype, then that dtype: as if it had been freed before."""
    folder = folders("gemma4", "fp8-dynamic")
    for model in (tqcli.load(folder, dtype=dtype)[0], load(folder, dtype=dtype)):
        check_parameters(model, folder, dtype)
        assert model.dtype == dtype


@pytest.mark.parametrize("model", ["gemma4", "llama"])
def test_a_model_is_loaded_as_its_freed_folder(model, folders, tmp_path, ids):
    succeed("convert", folders(model, "w4a16"), tmp_path / "free", "-r", "bf16")
    ours, freed = tqcli.load(folders(model, "w4a16"))[0], load(tmp_path / "free")
    expected = freed.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    assert torch.equal(logits(ours, ids), logits(freed, ids))


@pytest.mark.parametrize("loader", [tqcli.load, load])
def test_a_freed_folder_is_a_plain_checkpoint(loader, folders, tmp_path):
    succeed("convert", folders("llama", "w4a16"), tmp_path / "free", "-r", "bf16")
    loader(tmp_path / "free")


def test_the_settings_for_generation_are_kept(copy):
    folder = copy("gemma4", "fp8-dynamic")
    settings = {"temperature": 0.25, "top_k": 7, "max_new_tokens": 5, "do_sample": True, "eos_token_id": [1, 3]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    for model in (tqcli.load(folder)[0], load(folder)):
        assert {key: getattr(model.generation_config, key) for key in settings} == settings


@pytest.mark.parametrize("model", MODELS)
def test_saved_it_is_a_plain_checkpoint(model, folders, tmp_path, ids):
    loaded, _ = tqcli.load(folders(model, "fp8-dynamic"))
    loaded.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    for section in (config, config.get("text_config", {})):
        assert not {"quantization_config", "quantization", "transformers_weights"} & set(section)
    assert {one.dtype for one in pack.tensors_of(tmp_path / "saved").values()} == {torch.bfloat16}
    assert not [name for name in pack.tensors_of(tmp_path / "saved") if "weight_" in name]
    assert torch.equal(logits(load(tmp_path / "saved"), ids), logits(loaded, ids))


# What is missing must never become random.


def change(folder: Path, edit) -> None:
    tensors = pack.tensors_of(folder)
    edit(tensors)
    pack.write_shards(folder, tensors, 2)


def both_loaders():
    return pytest.mark.parametrize("loader", [tqcli.load, load], ids=["load", "from_pretrained"])


@both_loaders()
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_expert_is_missing(recipe, loader, copy):
    def edit(tensors):
        for name in [name for name in tensors if ".layers.1.experts.5.up_proj." in name]:
            del tensors[name]

    folder = copy("gemma4", recipe)
    change(folder, edit)
    with pytest.raises(InputError, match=r"expert 5 of .*layers\.1\.experts` has no up_proj"):
        loader(folder)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "llama"])
def test_a_scale_is_missing(name, recipe, copy):
    gone = []

    def edit(tensors):
        gone.append(sorted(one for one in tensors if one.endswith("up_proj.weight_scale"))[-1])
        del tensors[gone[0]]

    folder = copy(name, recipe)
    change(folder, edit)
    with pytest.raises(InputError) as caught:
        tqcli.load(folder)
    assert gone[0].removesuffix(".weight_scale") in str(caught.value)


@both_loaders()
def test_every_expert_of_a_layer_is_missing(loader, copy):
    def edit(tensors):
        for name in [name for name in tensors if ".layers.1.experts." in name]:
            del tensors[name]

    folder = copy("gemma4", "fp8-dynamic")
    change(folder, edit)
    with pytest.raises(InputError, match=r"layers\.1\.experts\.(gate_up|down)_proj.*missing from the checkpoint"):
        loader(folder)


@pytest.mark.parametrize("name", ["qwen3_moe"])
def test_one_expert_of_a_model_that_has_them_one_by_one(name, copy):
    def edit(tensors):
        for one in [one for one in tensors if ".layers.1.mlp.experts.5." in one]:
            del tensors[one]

    folder = copy(name, "fp8-dynamic")
    change(folder, edit)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts"):
        tqcli.load(folder)


@both_loaders()
def test_an_expert_too_many(loader, copy):
    def edit(tensors):
        for name in [name for name in tensors if ".layers.1.experts.5." in name]:
            tensors[name.replace(".experts.5.", ".experts.6.")] = tensors[name].clone()

    folder = copy("gemma4", "fp8-dynamic")
    change(folder, edit)
    with pytest.raises(InputError, match=r"layers\.1\.experts` has an expert 6"):
        loader(folder)


@both_loaders()
def test_a_tensor_too_many(loader, copy):
    folder = copy("gemma4", "fp8-dynamic")
    change(folder, lambda tensors: tensors.update({"model.surplus.weight": torch.zeros(2, 2)}))
    with pytest.raises(InputError, match=r"surplus\.weight"):
        loader(folder)


@both_loaders()
@pytest.mark.parametrize("name", ["self_attn.q_norm.weight", "router.proj.weight", "layer_scalar"])
def test_a_kept_tensor_is_missing(name, loader, copy):
    folder = copy("gemma4", "fp8-dynamic")
    change(folder, lambda tensors: tensors.pop("model.language_model.layers.2." + name))
    with pytest.raises(InputError, match=r"layers\.2\." + name.replace(".", r"\.")):
        loader(folder)


@both_loaders()
def test_a_matrix_of_another_shape(loader, copy):
    def edit(tensors):
        base = "model.language_model.layers.0.mlp.up_proj.weight"
        for name in (base, base + "_scale"):
            tensors[name] = tensors[name][:-1].contiguous()

    folder = copy("gemma4", "fp8-dynamic")
    change(folder, edit)
    with pytest.raises(InputError, match=r"mlp\.up_proj"):
        loader(folder)


@both_loaders()
def test_an_index_is_cut(loader, copy):
    """A file that the index no longer names, as after half a download."""
    folder = copy("gemma4", "fp8-dynamic")
    change(folder, lambda _: None)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    last = sorted(set(index["weight_map"].values()))[-1]
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != last}
    path.write_text(json.dumps(index))
    (folder / last).unlink()
    with pytest.raises(InputError, match=r"experts|missing"):
        loader(folder)


@both_loaders()
def test_a_shard_is_gone(loader, copy):
    folder = copy("gemma4", "fp8-dynamic")
    change(folder, lambda _: None)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002"):
        loader(folder)


@both_loaders()
def test_a_truncated_file(loader, copy):
    folder = copy("gemma4", "fp8-dynamic")
    change(folder, lambda _: None)
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="model-00002"):
        loader(folder)


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.skipif(not PEER.exists(), reason="no .venv-llmcompressor; run scripts/setup --peers")
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "MXFP4A16"])
def test_folders_of_llm_compressor(scheme, tmp_path, ids):
    code = (
        "import sys, llmcompressor.entrypoints.model_free as m\n"
        "save = m.save_file\n"
        "m.save_file = lambda tensors, path: save({n: t.contiguous() for n, t in tensors.items()}, path)\n"
        "ignore = ['lm_head', 're:.*embed.*', 're:.*router', 're:.*vision_tower.*', 're:.*norm.*']\n"
        "m.model_free_ptq(sys.argv[1], sys.argv[2], scheme=sys.argv[3], ignore=ignore)"
    )
    run_python(code, TRAINED, tmp_path / "theirs", scheme, python=PEER)
    model, _ = tqcli.load(tmp_path / "theirs")
    assert check_parameters(model, tmp_path / "theirs") == 123
    before = logits(tqcli.load(TRAINED, dtype=torch.float32)[0], ids)
    assert cosine_similarity(before, logits(model.float(), ids), -1).mean() > (0.9 if "MXFP4" in scheme else 0.995)
    check_parameters(load(tmp_path / "theirs"), tmp_path / "theirs")


def run_python(code: str, *arguments: object, python: object = sys.executable) -> str:
    done = subprocess.run([str(python), "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
