"""Make a compressed cache what one model's `generate` uses where it is given none.

The model itself keeps the choice: its method that prepares the cache is covered by one that lets transformers prepare
its own and puts ours in its place. Other models, and the model's class, stay as they are. What cannot be covered
raises: nobody would notice a plain cache in a compressed one's place. Left out: `generate_batch`, which has a paged
cache of its own.
"""

from types import MethodType
from typing import Any

from transformers.cache_utils import DynamicCache

from tqcli.errors import InputError
from tqcli.kv.cache import TurboQuantCache
from tqcli.kv.settings import CacheSettings

_METHOD = "_prepare_cache_for_generation"
# How `generate` names the cache among a model's arguments: since version 5.2x, and before.
_NAMES = ("cache", "past_key_values")
_SETTINGS = "_tq_cache_settings"


def use_by_default(model: Any, settings: CacheSettings) -> None:
    """Let `model.generate` use a `TurboQuantCache` of these settings unless it is given a cache.

    Raises InputError for a model that prepares no such cache, or whose cache cannot be compressed.
    """
    if not callable(getattr(model, _METHOD, None)):
        raise InputError(
            f"`{type(model).__name__}` does not let its cache be replaced",
            why=f"it has no method `{_METHOD}`",
            fix="pass a `TurboQuantCache` to each call, or load without `kv`",
        )
    TurboQuantCache(model.config, settings)
    if getattr(model, "generation_config", None) is not None:
        # Some checkpoints name a cache of transformers' own; the one that is asked for here takes its place.
        model.generation_config.cache_implementation = None
    setattr(model, _SETTINGS, settings)
    setattr(model, _METHOD, MethodType(_prepare_cache_for_generation, model))


def _prepare_cache_for_generation(
    self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    stock = getattr(type(self), _METHOD)
    is_given = any(model_kwargs.get(name) is not None for name in _NAMES)
    if is_given or generation_config.use_cache is False:
        return stock(self, generation_config, model_kwargs, *args, **kwargs)
    _check_implementation(generation_config.cache_implementation)
    result = stock(self, generation_config, model_kwargs, *args, **kwargs)
    # Some versions change it for assisted generation, to a cache without sliding windows.
    _check_implementation(generation_config.cache_implementation)
    model_kwargs[_name_of_plain(self, model_kwargs)] = cache = TurboQuantCache(self.config, getattr(self, _SETTINGS))
    if getattr(generation_config, "is_assistant", False) and hasattr(cache, "activate_past_recording"):
        cache.activate_past_recording()
    return result


def _check_implementation(name: str | None) -> None:
    if name not in (None, "dynamic"):
        raise InputError(
            f"`cache_implementation={name}` is not the compressed cache that this model was loaded with",
            fix="leave it out, or load the model without `kv`",
        )


def _name_of_plain(model: Any, model_kwargs: dict[str, Any]) -> str:
    found = [name for name in _NAMES if type(model_kwargs.get(name)) is DynamicCache]
    if len(found) != 1:
        raise InputError(
            f"the cache of `{type(model).__name__}` cannot be replaced",
            why="transformers did not prepare a plain one",
            fix="load without `kv`",
        )
    return found[0]
