"""The compressed-tensors layout, as llm-compressor's `model_free_ptq` writes it and vLLM loads it.

Experts one by one, files named as the source's, config.json and index sorted. Every linear module that stays as it is
stands in `ignore`: engines take whatever does not for compressed. Left out: calibrated activations and KV caches.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqcli.architectures.base import Architecture, Role
from tqcli.arrangement import Arrangement
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.sidecars import CONFIG_NAME, INDEX_NAME
from tqcli.checkpoint.writer import ShardLayout, shard
from tqcli.decision import Decision
from tqcli.formats.base import SchemeFormat
from tqcli.layouts.experts import fused, is_stack, one_by_one
from tqcli.layouts.files import numbered_shards, plain_config, same_names, weight_map
from tqcli.packed import PackedTensor
from tqcli.plan import Plan
from tqcli.readers.find import Contents
from tqcli.weights import Weight

# The version of compressed-tensors whose keys these are.
_VERSION = "0.19.0"
# What `model_free_ptq` is told to leave alone in a multimodal mixture of experts. Patterns match from the left.
# vLLM runs all experts of a layer by one scheme.
_EXPERTS: tuple[Role, ...] = ("expert_gate", "expert_up", "expert_down")
IGNORED = ("lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*", "re:.*norm.*")

_WEIGHT, _KEYS, _VALUES = ".weight", ".k_proj.weight", ".v_proj.weight"


class CompressedTensorsLayout:
    """Original names, but for the experts."""

    name = "compressed_tensors"

    def arrange(self, originals: Sequence[Weight], source: Checkpoint) -> Arrangement:
        """Stacks of experts are cut into a gate, an up and a down projection for each."""
        del source
        weights: list[Weight] = []
        for weight in originals:
            weights += one_by_one(weight) if is_stack(weight) else [weight]
        return Arrangement(self.name, tuple(weights), alike=(_EXPERTS,))

    def restore(self, contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
        """Experts are stacked again where the architecture's checkpoints have them so."""
        weights = same_names(contents, source, architecture)
        return fused(weights, source.config) if architecture.stacked_experts else weights

    def lay_out(self, decisions: Sequence[Decision], source: Checkpoint, shard_bytes: int) -> tuple[ShardLayout, ...]:
        """The source's own division, where none of its files gets larger than `shard_bytes`; else numbered shards."""
        files: dict[str, list[Decision]] = {one.name: [] for one in source.shards}
        for decision in decisions:
            files[_file(decision)].append(decision)
        found = {name: [one for decision in inside for one in decision.stored] for name, inside in files.items()}
        if any(sum(one.nbytes for one in tensors) > shard_bytes for tensors in found.values()):
            return numbered_shards(decisions, shard_bytes)
        return tuple(shard(name, tensors) for name, tensors in found.items() if tensors)

    def documents(self, plan: Plan) -> dict[str, bytes]:
        """An index in every case, as `model_free_ptq` writes one, and config.json."""
        config = plain_config(plan.source)
        if plan.packed:
            config["quantization_config"] = quantization_config(plan)
        index = {"metadata": {"total_size": plan.weight_bytes}, "weight_map": weight_map(plan)}
        return {INDEX_NAME: _json(index), CONFIG_NAME: _json(config)}

    def record(self, plan: Plan) -> Mapping[str, Any]:
        """Its name alone."""
        del plan
        return {"format": self.name}


LAYOUT = CompressedTensorsLayout()


def quantization_config(plan: Plan) -> dict[str, Any]:
    """The section of config.json. The commonest format is for every `Linear`, others name their modules."""
    modules: dict[SchemeFormat, list[str]] = {}
    for decision in plan.packed:
        if isinstance(decision.format, SchemeFormat):
            modules.setdefault(decision.format, []).extend(_modules(decision, plan))
    ordered = sorted(modules, key=lambda one: -len(modules[one]))
    groups = {}
    for number, one in enumerate(ordered):
        key = one.scheme_name if one.scheme_name not in groups else f"group_{number}"
        groups[key] = one.scheme() | ({"targets": modules[one]} if number else {})
    formats = list(dict.fromkeys(group["format"] for group in groups.values()))
    return {
        "config_groups": groups,
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": ignored(plan),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": _VERSION,
    }


def ignored(plan: Plan) -> list[str]:
    """Patterns and names that match every matrix that is kept, and none that is compressed."""
    packed = [module for decision in plan.packed for module in _modules(decision, plan)]
    patterns = [one for one in IGNORED if not any(matches_module(one, name) for name in packed)]
    for name in _kept_modules(plan):
        if not any(matches_module(pattern, name) for pattern in patterns):
            patterns.append(name)
    return patterns


def _kept_modules(plan: Plan) -> Iterator[str]:
    for decision in plan.decisions:
        if decision.format is None and decision.weight.name.endswith(_WEIGHT) and len(decision.weight.shape) == 2:
            yield from _modules(decision, plan)


def _modules(decision: Decision, plan: Plan) -> Iterator[str]:
    """The module of a weight. Where keys are values too, engines ask for the values by a name of their own."""
    name = decision.weight.name
    yield name.removesuffix(_WEIGHT)
    values = name.removesuffix(_KEYS) + _VALUES
    if name.endswith(_KEYS) and values not in plan.by_name:
        yield values.removesuffix(_WEIGHT)


def matches_module(pattern: str, module: str) -> bool:
    """Whether an entry of `ignore`, a name or a `re:` pattern that matches from the left, means a module.

    Raises re.error for a pattern that is none.
    """
    return bool(re.match(pattern[3:], module)) if pattern.startswith("re:") else pattern == module


def _file(decision: Decision) -> str:
    source = decision.weight.runs[0].source if decision.weight.runs else None
    if source is None:
        raise RuntimeError(f"{decision.weight.name} comes from nowhere")
    return source.parts[0].tensor.file if isinstance(source, PackedTensor) else source.file


def _json(value: Mapping[str, Any]) -> bytes:
    """As `json.dump(value, indent=2, sort_keys=True)` writes it, which is what the peer does."""
    return json.dumps(value, indent=2, sort_keys=True).encode()
