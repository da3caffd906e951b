"""A model loaded with `kv` compresses its cache by itself, and never takes a plain one unnoticed."""

import copy
import shutil

import pytest
import torch
from support.kv_caches import cache_name
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache

import tqcli
from tqcli.errors import InputError
from tqcli.kv.cache import TurboQuantCache
from tqcli.kv.default import use_by_default
from tqcli.kv.settings import read_settings

SMALL = {"sink_tokens": 2, "residual_tokens": 8, "block_tokens": 4, "sliding": True}
OPTIONS = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def compressing(model):
    """A model that has been told; the fixture's own stays as it was."""
    told = copy.deepcopy(model)
    use_by_default(told, read_settings("k4v3", **SMALL))
    return told


def cache_of(model, ids, **options):
    found = model.generate(input_ids=ids, return_dict_in_generate=True, **OPTIONS | options)
    return found.get(cache_name(model)), found.sequences


def test_generate_uses_it(compressing, model, ids):
    cache, text = cache_of(compressing, ids)
    assert type(cache) is TurboQuantCache
    assert cache.settings == read_settings("k4v3", **SMALL)
    given = {cache_name(model): TurboQuantCache(model.config, "k4v3", **SMALL)}
    assert torch.equal(text, cache_of(model, ids, **given)[1])


def test_each_call_has_its_own(compressing, ids):
    first, text = cache_of(compressing, ids)
    second, again = cache_of(compressing, ids)
    assert first is not second
    assert torch.equal(text, again)


def test_other_models_of_the_class_stay_as_they_are(compressing, model, ids):
    assert type(compressing) is type(model)
    assert type(cache_of(model, ids)[0]) is DynamicCache


def test_a_copy_of_the_model_is_told_too(compressing, ids):
    twin = copy.deepcopy(compressing)
    cache, text = cache_of(twin, ids)
    assert type(cache) is TurboQuantCache
    assert torch.equal(text, cache_of(compressing, ids)[1])


def test_beams_sampling_and_several_answers(compressing, ids):
    for options in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        assert type(cache_of(compressing, ids, **options)[0]) is TurboQuantCache


def test_a_cache_that_is_given_is_used(compressing, ids):
    given = DynamicCache(config=compressing.config)
    assert cache_of(compressing, ids, **{cache_name(compressing): given})[0] is given


def test_no_cache_is_no_cache(compressing, ids):
    assert cache_of(compressing, ids, use_cache=False)[0] is None


@pytest.mark.parametrize("name", ["static", "quantized", "offloaded"])
def test_another_cache_is_not_taken_silently(compressing, ids, name):
    with pytest.raises(InputError, match=f"cache_implementation={name}"):
        compressing.generate(input_ids=ids, cache_implementation=name, **OPTIONS)
    with pytest.raises(InputError, match=f"cache_implementation={name}"):
        compressing.generate(input_ids=ids, generation_config=GenerationConfig(cache_implementation=name, **OPTIONS))


def test_a_cache_that_the_checkpoint_names_gives_way(llama, ids):
    told = copy.deepcopy(llama)
    told.generation_config.cache_implementation = "static"
    use_by_default(told, read_settings("k4v3"))
    assert type(cache_of(told, ids)[0]) is TurboQuantCache


def test_guessing_ahead_uses_it(compressing, ids):
    if not hasattr(DynamicCache, "activate_past_recording"):
        with pytest.raises(InputError):
            compressing.generate(input_ids=ids[:1], prompt_lookup_num_tokens=3, **OPTIONS)
        return
    assert type(cache_of(compressing, ids[:1], prompt_lookup_num_tokens=3)[0]) is TurboQuantCache


@pytest.mark.skipif(not hasattr(DynamicCache, "activate_past_recording"), reason="refused, as above")
def test_an_assistant_guesses_with_its_own(llama, ids):
    model, assistant = copy.deepcopy(llama), copy.deepcopy(llama)
    for one in (model, assistant):
        use_by_default(one, read_settings("k8v8", **SMALL))
    assert type(cache_of(model, ids[:1], assistant_model=assistant)[0]) is TurboQuantCache


def test_what_cannot_be_told_is_refused(llama, mistral):
    with pytest.raises(InputError, match="does not let its cache be replaced"):
        use_by_default(torch.nn.Linear(2, 2), read_settings("k4v3"))
    with pytest.raises(InputError, match="nothing of this model's cache"):
        use_by_default(mistral, read_settings("k4v3"))
    assert "_prepare_cache_for_generation" not in vars(mistral)


def test_a_cache_of_another_kind_from_transformers_is_not_replaced_silently(llama, ids):
    class Other(type(llama)):
        def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
            model_kwargs[cache_name(self)] = type("Strange", (DynamicCache,), {})(config=self.config)

    told = copy.deepcopy(llama)
    told.__class__ = Other
    use_by_default(told, read_settings("k4v3"))
    with pytest.raises(InputError, match="cannot be replaced"):
        told.generate(input_ids=ids, **OPTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from support import tiny_models

    path = tmp_path_factory.mktemp("kv") / "gemma4"
    path.mkdir()
    tiny_models.gemma4(path)
    return path


def test_load_tells_the_model(folder, ids):
    model, _ = tqcli.load(folder, kv="k4v3")
    cache, _ = cache_of(model, ids)
    assert type(cache) is TurboQuantCache
    assert str(cache.settings.widths) == "k4v3"
    with_settings, _ = tqcli.load(folder, kv=read_settings("k8v4", sink_tokens=0))
    assert cache_of(with_settings, ids)[0].settings == read_settings("k8v4", sink_tokens=0)


def test_load_without_it_is_as_ever(folder, ids):
    for options in ({}, {"kv": "none"}):
        assert type(cache_of(tqcli.load(folder, **options)[0], ids)[0]) is DynamicCache


@pytest.mark.parametrize("kv", ["fp8", "k1v1", "", None])
def test_load_refuses_text_that_is_no_cache_before_anything_is_read(tmp_path, kv):
    with pytest.raises(InputError, match="key-value cache"):
        tqcli.load(tmp_path / "nothing", kv=kv)


def test_load_refuses_a_model_that_cannot_have_one_before_its_weights_are_read(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copied")
    for shard in copied.glob("*.safetensors"):
        shard.write_bytes(b"")
    with pytest.raises(InputError, match="nothing of this model's cache"):
        tqcli.load(copied, kv=read_settings("k4v3", boundary_layers=3))
