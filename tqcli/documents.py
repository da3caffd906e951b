"""What tq writes into every folder beside the layout's own files: the recipe, and tq_config.json, the record.

Pure functions of plan and hashes. No time stamp, no machine path: the same source and recipe give the same bytes. The
record has a version, a map of every tensor, checksums, provenance; in the native layout also the published keys.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tqcli.decision import Decision
from tqcli.formats.native import RECIPE_NAME, TQ_CONFIG_NAME, version_of
from tqcli.layouts.base import find
from tqcli.layouts.files import to_json
from tqcli.plan import Plan
from tqcli.requantising import base_model, why_compressed
from tqcli.version import __version__


def all_documents(plan: Plan, sha256: Mapping[str, str], files: Sequence[str]) -> dict[str, bytes]:
    """Name -> content, in the order of writing: config.json last, without which no reader takes a folder for whole.

    sha256: stored tensor -> hex digest; files: the side files copied. Raises KeyError where a tensor has no digest.
    """
    return {
        RECIPE_NAME: recipe_toml(plan.recipe.to_flat()),
        TQ_CONFIG_NAME: tq_config_json(plan, sha256, files),
        **find(plan.layout).documents(plan),
    }


def tq_config_json(plan: Plan, sha256: Mapping[str, str], files: Sequence[str]) -> bytes:
    """What was done to every tensor. sha256: stored tensor -> hex digest; files: the side files copied."""
    return to_json(
        {
            **find(plan.layout).record(plan),
            "original_model": _original_model(plan),
            "format_version": version_of(d.format.format for d in plan.packed if d.format),
            "layout": plan.layout,
            "tool": f"tqcli {__version__}",
            "source": {
                "model": plan.source.storage.origin,
                "revision": plan.source.storage.revision,
                "fingerprint": plan.source.content_fingerprint(),
            },
            "recipe": plan.recipe.to_flat(),
            "files": sorted(files),
            "shards": [shard.name for shard in plan.shards],
            **_left_out(plan),
            "tensors": {d.weight.name: _tensor_entry(d, sha256) for d in plan.decisions},
        }
    )


def _original_model(plan: Plan) -> str:
    """Of a compressed source, what that was made from, where it says so."""
    base = base_model(plan.source) if why_compressed(plan.source) else ""
    return base or plan.source.storage.origin


def _left_out(plan: Plan) -> dict[str, Any]:
    return {"left_out": [one.weight.name for one in plan.left_out]} if plan.left_out else {}


def _tensor_entry(decision: Decision, sha256: Mapping[str, str]) -> dict[str, Any]:
    return {
        **({"format": decision.format.format, **decision.format.config()} if decision.format else {}),
        "shape": list(decision.weight.shape),
        "dtype": decision.weight.dtype,
        "sha256": {stored.name: sha256[stored.name] for stored in decision.stored},
    }


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
