"""The scripts that make checkpoints: what they write is what transformers and `tq` take."""

import json

import pytest

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.job import Job, plan_job

SMALL = ["--layers", "2", "--experts", "2", "--hidden", "64", "--vocabulary", "4096", "--vision-layers", "1"]
ARCHITECTURES = ["gemma3_text", "gemma4", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe"]


def tensors(folder):
    with LocalFolder(folder) as storage:
        return {tensor.name: tensor.shape for tensor in open_checkpoint(storage).tensors.values()}


def test_the_whole_26b_has_the_size_of_the_real_one(run_script, tmp_path):
    done = run_script("gen_full26b", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1013 tensors   25,805,936,206 parameters   51,611,872,412 bytes   ")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def generated(run_script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "out"
    done = run_script("gen_full26b", folder, *SMALL, "--shard-gb", "0.05")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_generated_checkpoint_can_be_planned(generated):
    assert len(list(generated.glob("*.safetensors"))) > 1
    plan = plan_job(Job(str(generated), "tq3"))
    roles = {role for decision in plan.packed for role in decision.role.roles}
    assert {"q", "k", "v", "o", "gate", "up", "down", "expert_gate", "expert_up", "expert_down"} <= roles


def test_one_huge_shard_holds_everything(run_script, tmp_path):
    done = run_script("gen_full26b", tmp_path / "one", *SMALL, "--shard-gb", "0.05", "--one-huge-shard")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.slow
def test_a_generated_checkpoint_is_the_model_that_its_config_describes(generated):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(generated))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert tensors(generated) == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_models_load_and_are_understood(run_script, tmp_path, architecture):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = run_script("make_tiny_model", tmp_path, "--architecture", architecture)
    assert done.returncode == 0, done.stderr
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        assert model(input_ids=ids["input_ids"]).logits.isfinite().all()
    plan = plan_job(Job(str(tmp_path), "tq3"))
    assert all(role != "other" for decision in plan.packed for role in decision.role.roles)


@pytest.mark.slow
def test_mixtures_of_experts_are_stored_as_on_the_hub(run_script, tmp_path):
    assert run_script("make_tiny_model", tmp_path / "qwen", "--architecture", "qwen3_moe").returncode == 0
    assert run_script("make_tiny_model", tmp_path / "gemma", "--architecture", "gemma4").returncode == 0
    qwen, gemma = tensors(tmp_path / "qwen"), tensors(tmp_path / "gemma")
    assert qwen["model.layers.0.mlp.experts.7.down_proj.weight"] == (128, 96)
    assert gemma["model.language_model.layers.0.experts.gate_up_proj"] == (8, 192, 128)
    assert "model.language_model.layers.3.self_attn.v_proj.weight" not in gemma
    assert any(name.startswith("model.vision_tower.") for name in gemma)


@pytest.mark.slow
def test_the_fixture_has_the_shape_that_the_trainer_makes(run_script, tmp_path, tiny_model):
    assert run_script("make_tiny_model", tmp_path, "--vocabulary", "4096").returncode == 0
    # Its tokenizer finds fewer words in its few lines, which the embedding does not depend on.
    assert tensors(tmp_path) == tensors(tiny_model)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tiny_model))
    assert ours["text_config"]["layer_types"] == theirs["text_config"]["layer_types"]


@pytest.mark.slow
def test_training_lowers_the_loss(run_script, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"the list holds {i} numbers and the function returns {i + 1} of them\n" for i in range(3000))
    )
    arguments = ["--vocabulary", "400", "--steps", "40", "--batch", "4", "--length", "64"]
    done = run_script("train_tiny_model", text, tmp_path / "out", *arguments)
    assert done.returncode == 0, done.stderr
    last = [line for line in done.stdout.splitlines() if line.startswith("step")][-1]
    assert float(last.split()[-1]) < 5.0, "a random guess over 400 tokens loses 6.0"
    assert plan_job(Job(str(tmp_path / "out"), "tq3")).packed
