"""From a Hub: by id and revision, with one look-up for tq_config.json, none of it in the way of other models."""

import itertools

import pytest
import torch
from huggingface_hub import constants
from support.fake_hub import FakeHub, FakeRepository
from transformers import AutoModelForCausalLM

import tqcli
from tqcli.errors import InputError, MachineError
from tqcli.formats.native import TQ_CONFIG_NAME
from tqcli.runtime.transformers.modules import TqLinear


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """One for all tests here: transformers keeps the address that it saw first."""
    home = tmp_path_factory.mktemp("hub")
    with FakeHub() as hub, pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


# transformers remembers which commit a name stood for, so each test has names of its own.
_numbers = itertools.count()


def publish(hub, folder, name="", branch="main"):
    name = name or f"someone/model-{next(_numbers)}"
    repository = hub.repositories.setdefault(name, FakeRepository())
    repository.commit({path.name: path.read_bytes() for path in folder.iterdir()}, branch)
    return name


def load(name, tmp_path, **options):
    return AutoModelForCausalLM.from_pretrained(name, cache_dir=tmp_path / "cache", dtype=torch.float32, **options)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("folder", ["ours", "published"])
def test_by_id(folder, request, hub, tmp_path, ids):
    path = request.getfixturevalue(folder)["qwen3"]
    model = load(publish(hub, path), tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert torch.equal(logits(model, ids), logits(expected, ids))


def test_a_revision(hub, published, sources, tmp_path):
    name = publish(hub, sources["llama"])
    publish(hub, published["llama"], name, branch="tq3")
    found = [load(name, tmp_path, **options).model.layers[0].mlp.up_proj for options in ({}, {"revision": "tq3"})]
    assert [isinstance(module, TqLinear) for module in found] == [False, True]


def test_a_plain_model_costs_one_look_up(hub, sources, tmp_path):
    name = publish(hub, sources["llama"])
    load(name, tmp_path)
    assert len([path for _, path, _ in hub.requests if name in path and path.endswith(TQ_CONFIG_NAME)]) == 1


@pytest.mark.parametrize("folder", ["sources", "published"])
def test_from_the_cache_alone(folder, request, hub, tmp_path):
    name = publish(hub, request.getfixturevalue(folder)["llama"])
    load(name, tmp_path)
    seen = len(hub.requests)
    model = load(name, tmp_path, local_files_only=True)
    assert isinstance(model.model.layers[0].mlp.up_proj, TqLinear) == (folder == "published")
    assert len(hub.requests) == seen


def test_the_cache_lacks_tq_config(hub, published, tmp_path):
    """As after a download by something that did not know of it: no guess, and no random weights."""
    name = publish(hub, published["llama"])
    load(name, tmp_path)
    for path in (tmp_path / "cache").rglob(TQ_CONFIG_NAME):
        path.unlink()
    with pytest.raises(InputError, match="tq_packed"):
        load(name, tmp_path, local_files_only=True)


def test_load_by_id(hub, published):
    model, tokenizer = tqcli.load(publish(hub, published["llama"]))
    assert isinstance(model.model.layers[0].mlp.up_proj, TqLinear)
    assert len(tokenizer) > 256


def test_no_such_repository(hub):
    with pytest.raises(InputError, match="someone/else"):
        tqcli.load("someone/else")


def test_no_network_and_nothing_in_the_cache(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match="someone/absent"):
        tqcli.load("someone/absent")
