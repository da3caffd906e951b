"""`expert_cache` of a model: what can have one, how it gets one, and how often it hit.

The model has been loaded into host memory, where packed weights are mapped from the file. Its experts move to memory
that the device can fetch from, everything else moves to the device.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tqcli.errors import InputError, MachineError
from tqcli.runtime.transformers.expert_cache import Counts, ExpertCache, HostWeight
from tqcli.runtime.transformers.expert_cache_cuda import cuda_slots, page_locked
from tqcli.runtime.transformers.expert_cache_slots import MakeSlots
from tqcli.runtime.transformers.experts import PROJECTIONS
from tqcli.runtime.transformers.weight import TqWeight

_NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts")
_CHOSEN = ("num_experts_per_tok", "top_k_experts", "num_experts_per_token", "moe_topk", "moe_top_k")


@dataclass(frozen=True)
class ExpertCacheReport:
    """Counts by the name of each layer's experts, and their sums. slots: of a layer."""

    slots: int
    layers: Mapping[str, Counts]
    total: Counts


def expert_cache_device(device_map: Any) -> torch.device:
    """The CUDA device that a `device_map` names for the whole model.

    Raises InputError for the CPU and for several devices, MachineError where CUDA is not there.
    """
    whole = device_map[""] if isinstance(device_map, Mapping) and list(device_map) == [""] else device_map
    fix = '`device_map="cuda"`'
    try:
        device = (
            torch.device("cuda", whole) if isinstance(whole, int) else torch.device("cpu" if whole is None else whole)
        )
    except (RuntimeError, TypeError) as error:
        raise InputError("`expert_cache` is for one CUDA device", why=f"`device_map` is {whole!r}", fix=fix) from error
    if device.type == "cpu":
        why = "packed experts are mapped from disk there, and read where they lie"
        raise InputError("`expert_cache` does nothing on the CPU", why=why, fix=fix)
    if device.type != "cuda":
        raise InputError(f"`expert_cache` does not work on `{device}`", fix=fix)
    if not torch.cuda.is_available():
        raise MachineError("`expert_cache` needs a CUDA device", why="torch finds none here")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def check_expert_cache(config: Any, slots: int) -> None:
    """Raise InputError for a number of slots that makes no sense for the model that config.json describes."""
    text = config.get_text_config()
    experts, chosen = _first(text, _NUMBERS), _first(text, _CHOSEN)
    if not experts:
        raise InputError("`expert_cache` does nothing with this model", why="it has no experts")
    if not chosen:
        raise InputError(
            "`expert_cache` cannot be checked", why="config.json does not say how many experts a token has"
        )
    if isinstance(slots, bool) or not isinstance(slots, int):
        raise InputError(f"`expert_cache` is a number of experts, not {slots!r}")
    if slots > experts:
        fix = f"{experts} or less; without `expert_cache` all of them are on the device"
        raise InputError(f"`expert_cache={slots}` is too much", why=f"a layer has {experts} experts", fix=fix)
    if slots < 2 * chosen:
        why = f"a token has {chosen} experts of each layer, and the next token's need room beside them"
        fix = f"{2 * chosen} or more" if 2 * chosen <= experts else "no `expert_cache`: the model has too few experts"
        raise InputError(f"`expert_cache={slots}` is too little", why=why, fix=fix)


def move_with_expert_cache(model: Any, slots: int, device: torch.device) -> None:
    """From host memory to a CUDA device, all but the experts, which get so many slots in each layer there.

    Raises InputError as `use_expert_cache` does, MachineError where memory is short.
    """
    try:
        use_expert_cache(model, slots, cuda_slots(device), page_locked)
        model.to(device)
    except torch.cuda.OutOfMemoryError as error:
        why = next(iter(str(error).splitlines()), "")
        raise MachineError(f"`expert_cache={slots}` does not fit on `{device}`", why=why, fix="fewer slots") from error


def use_expert_cache(model: Any, slots: int, make: MakeSlots, hold: Callable[[Tensor], Tensor] = Tensor.detach) -> None:
    """Give the experts of each layer a cache. hold: from a tensor to the same in memory that the slots copy from.

    Raises InputError for a model without experts, and for experts that are not packed.
    """
    layers = dict(_experts(model))
    if not layers:
        raise InputError(
            "`expert_cache` does nothing with this model", why="it has no experts of the kind that runs packed"
        )
    # All of them before the first is changed.
    for name, module in layers.items():
        for leaf in PROJECTIONS:
            _check_packed(f"{name}.{leaf}", getattr(module, leaf, None))
    for module in layers.values():
        _give(module, slots, make, hold)


def expert_cache_report(model: nn.Module) -> ExpertCacheReport:
    """How often experts were on the device when they were asked for. Raises InputError for a model without a cache."""
    caches = {name: weight.cache for name, module in _experts(model) for weight in _held(module)}
    if not caches:
        raise InputError("this model has no expert cache", fix="load it with `expert_cache`")
    layers = {name: replace(cache.counts) for name, cache in caches.items()}
    total = Counts()
    for counts in layers.values():
        total += counts
    return ExpertCacheReport(next(iter(caches.values())).count, layers, total)


def _check_packed(name: str, weight: Any) -> None:
    if isinstance(weight, HostWeight):
        raise InputError("the model has an expert cache already")
    if not isinstance(weight, TqWeight):
        why, fix = f"`{name}` is not packed", "load without `expert_cache`"
        raise InputError("`expert_cache` is for experts that are packed", why=why, fix=fix)


def _give(module: Any, slots: int, make: MakeSlots, hold: Callable[[Tensor], Tensor]) -> None:
    weights = [getattr(module, leaf) for leaf in PROJECTIONS]
    parts = [[hold(part.detach()) for part in weight.parts] for weight in weights]
    # By expert: a row for each.
    host = [part.view(weight.shape[0], -1) for weight, pair in zip(weights, parts, strict=True) for part in pair]
    cache = ExpertCache(make(host, slots), slots)
    for number, (leaf, weight) in enumerate(zip(PROJECTIONS, weights, strict=True)):
        delattr(module, leaf)
        setattr(module, leaf, HostWeight(weight, parts[number], cache, slice(2 * number, 2 * number + 2)))


def _experts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """By name, transformers' fused experts."""
    return ((name, module) for name, module in model.named_modules() if hasattr(type(module), "_apply_gate"))


def _held(module: Any) -> Iterator[HostWeight]:
    weight = getattr(module, PROJECTIONS[0], None)
    if isinstance(weight, HostWeight):
        yield weight


def _first(config: Any, keys: tuple[str, ...]) -> int:
    """What config.json says under one of the names that models have for it; 0 where it says nothing."""
    found = next((value for key in keys if (value := getattr(config, key, None)) is not None), 0)
    return found if isinstance(found, int) else 0
