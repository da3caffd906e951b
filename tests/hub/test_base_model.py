"""A folder that is not whole, opened with its base model: found by its name, fetched, and never mistaken."""

import json
import shutil

import numpy as np
import pytest
from huggingface_hub import constants
from support import checkpoints
from support.fake_hub import FakeRepository
from support.hlwq_folders import TINY, bf16, tiny_sample, values_of
from support.hlwq_samples import write_sample

from tqcli.architectures.base import find
from tqcli.checkpoint.overlay import Overlay
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.convert import NoProgress
from tqcli.errors import InputError, MachineError
from tqcli.hub.base_model import lacks_tensors, local_checkpoint, named_base, open_model, wants_base
from tqcli.hub.fetch import open_source
from tqcli.job import Job, plan_job, run_job
from tqcli.layouts.originals import original_weights
from tqcli.weights import read_rows


@pytest.fixture
def sample(tmp_path):
    return tiny_sample("hlwq", tmp_path / "sample")


@pytest.fixture
def base(hub):
    repository = hub.repositories["org/tiny"] = FakeRepository()
    repository.commit({path.name: path.read_bytes() for path in TINY.iterdir()})
    return repository


def say(folder, name, **keys):
    path = folder / name
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(said | keys))


def test_what_a_folder_lacks_is_the_bases(sample):
    checkpoint = open_model(LocalFolder(sample.folder), str(TINY))
    storage = checkpoint.storage
    assert isinstance(storage, Overlay)
    taken = [one for one in checkpoint.tensors.values() if one.file.startswith("base-")]
    assert storage.taken == len(taken) == 68
    assert {one.name for one in taken} == open_checkpoint(LocalFolder(TINY)).tensors.keys() - sample.decoded.keys()
    truth = open_checkpoint(LocalFolder(TINY))
    for one in taken:
        there = truth.tensors[one.name]
        expected = truth.storage.read(there.file, there.offset, there.nbytes)
        assert storage.read(one.file, one.offset, one.nbytes) == expected


def test_without_a_name_the_base_is_asked_for(sample):
    assert lacks_tensors(open_checkpoint(LocalFolder(sample.folder)))
    with pytest.raises(InputError, match="does not hold every tensor") as raised:
        open_model(LocalFolder(sample.folder))
    assert "--base MODEL" in raised.value.fix
    assert "base_model=" in raised.value.fix


@pytest.mark.parametrize(
    "where", ["hlwq_config.json", "polar_config.json", "config.json", "_name_or_path", "card", "a list"]
)
def test_the_base_that_the_folder_names_is_taken(base, sample, where):
    if where == "card":
        (sample.folder / "README.md").write_text("---\nbase_model:\n- org/tiny\n---\n# A model\n")
    elif where == "_name_or_path":
        say(sample.folder, "config.json", _name_or_path="org/tiny")
    elif where == "a list":
        say(sample.folder, "hlwq_config.json", base_model=[7, "org/tiny"])
    else:
        say(sample.folder, where, base_model="org/tiny")
    checkpoint = open_model(LocalFolder(sample.folder))
    assert checkpoint.storage.base.label == "org/tiny"
    assert checkpoint.storage.taken == 68


@pytest.mark.parametrize("name", ["/etc", "../other", str(TINY), "tiny", 5, "a/b/c"])
def test_a_folder_cannot_choose_a_path_of_this_machine(sample, name):
    say(sample.folder, "hlwq_config.json", base_model=name)
    say(sample.folder, "config.json", _name_or_path=name)
    assert named_base(open_checkpoint(LocalFolder(sample.folder))) == ""
    with pytest.raises(InputError, match="does not hold every tensor"):
        open_model(LocalFolder(sample.folder))


def test_a_base_that_is_not_there_says_how_to_name_another(hub, sample):
    say(sample.folder, "hlwq_config.json", base_model="org/gone")
    with pytest.raises((InputError, MachineError), match="the base model cannot be opened") as raised:
        open_model(LocalFolder(sample.folder))
    assert "--base MODEL" in raised.value.fix


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_both_from_the_hub_give_the_same_as_both_from_folders(base, hub, sample, tmp_path, stream):
    repository = hub.repositories["org/hlwq"] = FakeRepository()
    say(sample.folder, "hlwq_config.json", base_model="org/tiny")
    repository.commit({path.name: path.read_bytes() for path in sample.folder.iterdir()})
    plan = plan_job(Job("org/hlwq", "bf16"))
    run_job(plan, tmp_path / "hub", workers=2, overwrite=False, stream=stream, every_row=False, progress=NoProgress())
    plan = plan_job(Job(str(sample.folder), "bf16", base=str(TINY)))
    local = tmp_path / "local"
    done = run_job(plan, local, workers=2, overwrite=False, stream=False, every_row=True, progress=NoProgress())
    assert done.report.compared == 120
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() == (local / "model.safetensors").read_bytes()


def test_fetched_files_must_be_those_that_were_listed(base, sample, tmp_path, monkeypatch):
    checkpoint = open_model(LocalFolder(sample.folder), "org/tiny")
    fetched = local_checkpoint(checkpoint)
    assert all(isinstance(one, LocalFolder) for one in (fetched.storage.folder, fetched.storage.base))
    assert fetched.storage.files() == checkpoint.storage.files()

    other = shutil.copytree(TINY, tmp_path / "other")
    path = other / "model-00002-of-00003.safetensors"
    checkpoints.write_file(path, checkpoints.read_file(path), {"format": "another"})
    monkeypatch.setattr("tqcli.hub.base_model.download", lambda storage, names: LocalFolder(other))
    with pytest.raises(MachineError, match="not those that were listed"):
        local_checkpoint(checkpoint)


@pytest.mark.parametrize("layout", ["multi", "unpacked"])
def test_a_folder_of_one_width_takes_even_its_config_from_the_base(layout, tmp_path):
    folder = tiny_sample(layout, tmp_path / "out").folder
    assert wants_base(LocalFolder(folder))
    with pytest.raises(InputError, match=r"has no `config.json`") as raised:
        open_model(LocalFolder(folder))
    assert "--base MODEL" in raised.value.fix
    checkpoint = open_model(LocalFolder(folder), str(TINY))
    assert checkpoint.config["model_type"] == "gemma4"


def test_a_folder_of_anything_else_without_config_is_not_called_hlwq(tmp_path):
    checkpoints.write_file(tmp_path / "model.safetensors", {"a": checkpoints.tensor((2, 2))})
    with pytest.raises(InputError, match=r"has no `config.json`") as raised:
        open_model(LocalFolder(tmp_path))
    assert "--base" not in raised.value.fix


def test_a_plain_model_has_no_base(gemma_folder):
    with pytest.raises(InputError, match="needs no base model"):
        open_model(LocalFolder(gemma_folder), str(gemma_folder))


def test_the_base_must_be_plain(sample, tmp_path):
    compressed = tiny_sample("hlwq", tmp_path / "other")
    with pytest.raises(InputError, match="is compressed itself"):
        open_model(LocalFolder(sample.folder), str(compressed.folder))


def test_a_base_of_another_model_is_refused(sample, gemma_folder, qwen_folder):
    with pytest.raises(InputError, match="is not in the base model"):
        open_model(LocalFolder(sample.folder), str(qwen_folder))
    with pytest.raises(InputError, match=r"is not in the base model|another shape|columns"):
        open_model(LocalFolder(sample.folder), str(gemma_folder))


def test_a_base_of_other_sizes_is_refused(sample, tmp_path):
    other = shutil.copytree(TINY, tmp_path / "other")
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    for path in other.glob("*.safetensors"):
        tensors = checkpoints.read_file(path)
        if name in tensors:
            checkpoints.write_file(path, tensors | {name: checkpoints.tensor((64, 128))})
    with pytest.raises(InputError, match=f"`{name}` has another shape"):
        open_model(LocalFolder(sample.folder), str(other))


def test_slices_of_a_base_whose_experts_lie_one_by_one(qwen_folder, tmp_path):
    """As transformers holds them in memory, where the published programs found them."""
    weights = values_of(qwen_folder)
    inside = "model.layers.0.mlp.experts"
    stacks = {
        f"{inside}.gate_up_proj": [
            np.concatenate([weights[f"{inside}.{e}.{one}_proj.weight"] for one in ("gate", "up")]) for e in range(3)
        ],
        f"{inside}.down_proj": [weights[f"{inside}.{e}.down_proj.weight"] for e in range(3)],
    }
    held = {name: values for name, values in weights.items() if inside not in name and "mlp.gate" not in name}
    config = json.loads((qwen_folder / "config.json").read_text())
    sample = write_sample("hlwq", tmp_path / "out", held | {n: np.stack(one) for n, one in stacks.items()}, config)
    checkpoint = open_model(LocalFolder(sample.folder), str(qwen_folder))
    found = {one.name: one for one in original_weights(checkpoint, find(checkpoint.config))}
    assert found.keys() == weights.keys()
    up = read_rows(checkpoint.storage, found[f"{inside}.2.up_proj.weight"], 0, 64)
    np.testing.assert_array_equal(up, bf16(sample.decoded[f"{inside}.gate_up_proj"][2][64:]))


def test_the_folders_language_model_may_be_called_otherwise(tmp_path):
    """A program that loads the text model alone sees `model.layers` for `model.language_model.layers`."""
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    values = values_of(TINY)[name]
    config = json.loads((TINY / "config.json").read_text())
    sample = write_sample("hlwq", tmp_path / "out", {name.replace("language_model.", ""): values}, config)
    checkpoint = open_model(LocalFolder(sample.folder), str(TINY))
    assert checkpoint.storage.taken == 119
    assert {one.name for one in original_weights(checkpoint, find(checkpoint.config))} == values_of(TINY).keys()


def test_an_offline_machine_says_how_to_name_a_folder(hub, sample, monkeypatch):
    say(sample.folder, "hlwq_config.json", base_model="org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises((InputError, MachineError)) as raised:
        open_model(open_source(str(sample.folder)))
    assert "--base MODEL" in raised.value.fix
