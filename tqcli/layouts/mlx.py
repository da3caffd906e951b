"""The MLX layout, as mlx_lm.convert writes it: its module names, its config.json, one index in every case.

Shards hold what the recipe's shard size allows; mlx_lm finds them by their names. Left out: what mlx_lm changes in the
tokenizer's files, which are copied byte for byte.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqcli.architectures.base import Architecture, find
from tqcli.arrangement import Arrangement
from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.shards import read_bounded
from tqcli.checkpoint.sidecars import CONFIG_NAME, INDEX_NAME
from tqcli.checkpoint.storage import Storage
from tqcli.checkpoint.writer import ShardLayout
from tqcli.decision import Decision
from tqcli.formats.mlx import Mlx
from tqcli.layouts.files import numbered_shards, plain_config, weight_map
from tqcli.layouts.mlx_names import TextShape, arranged, names_of
from tqcli.layouts.mlx_restore import restored
from tqcli.plan import Plan
from tqcli.readers.find import Contents
from tqcli.weights import Weight

_METADATA = (("format", "mlx"),)
_GENERATION = "generation_config.json"
_NOT_KEPT = ("_name_or_path", "vision_config")


class MlxLayout:
    """mlx_lm's names; towers are left out."""

    name = "mlx"

    def arrange(self, originals: Sequence[Weight], source: Checkpoint) -> Arrangement:
        """Stacks of experts apart into gate, up and down; towers left out. Raises InputError for unknown models."""
        model_type = str(source.config.get("model_type"))
        text = TextShape.of(source.config, find(source.config).layers(source.config))
        weights, gone = arranged(originals, names_of(model_type), text)
        return Arrangement(self.name, tuple(weights), tuple(gone))

    def restore(self, contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
        """Original names; what was left out stays out."""
        return restored(contents, source, architecture)

    def lay_out(self, decisions: Sequence[Decision], source: Checkpoint, shard_bytes: int) -> tuple[ShardLayout, ...]:
        """Numbered shards, marked as MLX's."""
        del source
        return tuple(replace(one, metadata=_METADATA) for one in numbered_shards(decisions, shard_bytes))

    def documents(self, plan: Plan) -> dict[str, bytes]:
        """The index and config.json."""
        config = {key: value for key, value in plain_config(plan.source).items() if key not in _NOT_KEPT}
        config |= _ends(plan.source.storage)
        if plan.packed:
            section = quantization(plan)
            config |= {"quantization": section, "quantization_config": section}
        metadata = {"total_size": plan.weight_bytes, "total_parameters": _leaf_parameters(plan)}
        index = {"metadata": metadata, "weight_map": weight_map(plan)}
        return {INDEX_NAME: _json(index), CONFIG_NAME: _json(dict(sorted(config.items())))}

    def record(self, plan: Plan) -> Mapping[str, Any]:
        """Its name alone."""
        del plan
        return {"format": self.name}


LAYOUT = MlxLayout()


def quantization(plan: Plan) -> dict[str, Any]:
    """The section of config.json: the recipe's default, and an entry for each module that an override names or that
    differs. mlx_lm before 0.32 does not load modules of another width without one.
    """
    chosen = plan.recipe.stored_as
    default = chosen if isinstance(chosen, Mlx) else next(d.format for d in plan.packed if isinstance(d.format, Mlx))
    entries = {
        decision.weight.name.removesuffix(".weight"): _entry(decision.format)
        for decision in plan.packed
        if isinstance(decision.format, Mlx) and (decision.by_override or _entry(decision.format) != _entry(default))
    }
    return {**_entry(default), "mode": "affine", **entries}


def _entry(stored_as: Mlx) -> dict[str, Any]:
    return {"group_size": stored_as.group_size, "bits": stored_as.bits}


def _ends(storage: Storage) -> dict[str, Any]:
    """The tokens that end an answer, which mlx_lm takes from generation_config.json and writes into config.json."""
    if _GENERATION not in storage.files():
        return {}
    ends = parse_object(read_bounded(storage, _GENERATION), _GENERATION).get("eos_token_id")
    return {"eos_token_id": ends} if ends else {}


def _leaf_parameters(plan: Plan) -> int:
    """As mlx_lm counts: the parameters of modules that hold no other module with parameters."""
    owners = {decision.weight.name.rpartition(".")[0] for decision in plan.decisions}
    parents = {owner[:at] for owner in owners for at, letter in enumerate(owner) if letter == "."}
    leaves = (d for d in plan.decisions if d.weight.name.rpartition(".")[0] not in parents)
    return sum(decision.weight.parameters for decision in leaves)


def _json(value: Mapping[str, Any]) -> bytes:
    """As mlx_lm writes it."""
    return json.dumps(value, indent=4).encode()
