"""The JSON files that a conversion writes: config.json, the index, tq_config.json. Pure functions of plan and hashes.

No time stamp, no machine path: the same source and recipe give the same bytes. `tq_config.json` keeps the keys that
turboquant-plus-vllm reads, and adds what it lacks: a version, a map of every tensor, checksums, provenance.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tqcli.checkpoint.sidecars import CONFIG_NAME, INDEX_NAME
from tqcli.formats.native import (
    FORMAT_VERSION,
    GUARD,
    NATIVE_FORMAT,
    QUANT_METHOD,
    RECIPE_NAME,
    TQ_CONFIG_NAME,
    USUAL_SEED,
)
from tqcli.formats.tq import Tq
from tqcli.plan import Decision, Plan
from tqcli.version import __version__


def all_documents(plan: Plan, sha256: Mapping[str, str], files: Sequence[str]) -> dict[str, bytes]:
    """Name -> content, in the order of writing: config.json last, without which no reader takes a folder for whole.

    sha256: stored tensor -> hex digest; files: the side files copied. Raises KeyError where a tensor has no digest.
    """
    index = index_json(plan)
    return {
        RECIPE_NAME: recipe_toml(plan.recipe.to_flat()),
        **({INDEX_NAME: index} if index is not None else {}),
        TQ_CONFIG_NAME: tq_config_json(plan, sha256, files),
        CONFIG_NAME: config_json(plan),
    }


def config_json(plan: Plan) -> bytes:
    """The source's config.json, its quantization section, and the guard against loading without the plug-in."""
    config = dict(plan.source.config)
    if plan.packed:
        config["quantization_config"] = quantization_config(plan)
        config["transformers_weights"] = GUARD
    return to_json(config)


def quantization_config(plan: Plan) -> dict[str, Any]:
    """Defaults of the recipe, and the tensors that differ from them."""
    default = _default(plan)
    differing = {d.tensor.name: d.tq.config() for d in plan.packed if d.tq and d.tq.config() != default}
    return {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        **default,
        **({"tensors": differing} if differing else {}),
        "tool": f"tqcli {__version__}",
    }


def index_json(plan: Plan) -> bytes | None:
    """The index; none where there is one shard, as readers expect."""
    if len(plan.shards) == 1:
        return None
    weight_map = {tensor.name: shard.name for shard in plan.shards for tensor in shard.tensors}
    return to_json({"metadata": {"total_size": plan.weight_bytes}, "weight_map": dict(sorted(weight_map.items()))})


def tq_config_json(plan: Plan, sha256: Mapping[str, str], files: Sequence[str]) -> bytes:
    """What was done to every tensor. sha256: stored tensor -> hex digest; files: the side files copied."""
    return to_json(
        {
            "format": NATIVE_FORMAT,
            **_published_keys(plan.packed),
            "compressed_layers": len(plan.packed),
            "original_model": plan.source.storage.origin,
            "format_version": FORMAT_VERSION,
            "tool": f"tqcli {__version__}",
            "source": {
                "model": plan.source.storage.origin,
                "revision": plan.source.storage.revision,
                "fingerprint": plan.source.content_fingerprint(),
            },
            "recipe": plan.recipe.to_flat(),
            "files": sorted(files),
            "tensors": {d.tensor.name: _tensor_entry(d, sha256) for d in plan.decisions},
        }
    )


def _tensor_entry(decision: Decision, sha256: Mapping[str, str]) -> dict[str, Any]:
    return {
        **(decision.tq.config() if decision.tq else {}),
        "shape": list(decision.tensor.shape),
        "dtype": decision.tensor.dtype,
        "sha256": {stored.name: sha256[stored.name] for stored in decision.stored},
    }


def _default(plan: Plan) -> dict[str, Any]:
    if isinstance(plan.recipe.stored_as, Tq):
        return plan.recipe.stored_as.config()
    return next((d.tq.config() for d in plan.packed if d.tq), {})


def _published_keys(packed: Sequence[Decision]) -> dict[str, Any]:
    """The keys by which published readers decode; none of them where they could not, so that they stop."""
    configs = [d.tq.config() for d in packed if d.tq]
    group_sizes = {config["group_size"] for config in configs}
    if len(group_sizes) != 1 or any(config["seed"] != USUAL_SEED for config in configs):
        return {}
    bits = _published_bits({d.tensor.name: d.tq.bits for d in packed if d.tq})
    if not bits:
        return {}
    group_size = group_sizes.pop()
    padded = {d.tensor.name: d.tensor.shape[-1] for d in packed if d.tensor.shape[-1] % group_size}
    return {**bits, "group_size": group_size, "quantizer_seed": USUAL_SEED, "orig_in_dims": padded}


def _published_bits(bits: Mapping[str, int]) -> dict[str, Any]:
    """One width, or two that substrings of the names tell apart: all that published readers understand."""
    widths = sorted(set(bits.values()))
    if len(widths) == 1:
        return {"bits": widths[0]}
    if len(widths) != 2:
        return {}
    low, high = widths
    patterns = sorted({_last_word(name) for name, width in bits.items() if width == high})
    by_pattern = {name: high if any(p in name for p in patterns) else low for name in bits}
    if by_pattern != dict(bits):
        return {}
    return {"bits": low, "sensitive_bits": high, "sensitive_patterns": patterns}


def _last_word(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def recipe_toml(recipe: Mapping[str, Any]) -> bytes:
    """A resolved recipe as a file that `--recipe` reads."""
    overrides = recipe.get("override", ())
    lines = [f"{key} = {_toml(value)}" for key, value in recipe.items() if key != "override"]
    for override in overrides:
        lines += ["", "[[override]]"]
        lines += [f"{key} = {_toml(value)}" for key, value in override.items()]
    return ("\n".join(lines) + "\n").encode()


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON's strings, integers and booleans are TOML's too, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def to_json(value: Mapping[str, Any]) -> bytes:
    """Indented JSON with a last newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
