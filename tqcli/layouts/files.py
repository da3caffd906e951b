"""Shards and indexes as most readers expect them, and the source's weights as they are: what layouts share."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tqcli.architectures.base import Architecture
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.writer import ShardLayout, lay_out_shards
from tqcli.decision import Decision
from tqcli.errors import InputError
from tqcli.packed import PackedTensor
from tqcli.plan import Plan
from tqcli.readers.find import Contents
from tqcli.weights import Source, Weight, whole

QUANTIZATION_KEYS = ("quantization_config", "quantization", "transformers_weights")


def numbered_shards(decisions: Sequence[Decision], shard_bytes: int) -> tuple[ShardLayout, ...]:
    """`model-00001-of-00002.safetensors` and so on, in the order of the decisions."""
    return lay_out_shards([decision.stored for decision in decisions], shard_bytes)


def weight_map(plan: Plan) -> dict[str, str]:
    """Stored tensor -> file, sorted."""
    return dict(sorted((tensor.name, shard.name) for shard in plan.shards for tensor in shard.tensors))


def index_json(plan: Plan) -> bytes | None:
    """The index; none where there is one shard, as readers expect."""
    if len(plan.shards) == 1:
        return None
    return to_json({"metadata": {"total_size": plan.weight_bytes}, "weight_map": weight_map(plan)})


def plain_config(source: Checkpoint) -> dict[str, Any]:
    """The source's config.json without what it says of a compression."""
    return {key: value for key, value in source.config.items() if key not in QUANTIZATION_KEYS}


def same_names(contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
    """Every weight of a folder, under the name that it has there, in the order of its files."""
    inside = contents.plain_names
    owners = {packed.parts[0].tensor.name: packed for packed in contents.packed.values()}
    found: list[Weight] = []
    for tensor in source.tensors.values():
        owner = owners.get(tensor.name)
        if owner is not None:
            found.append(_decoded(owner, source, architecture))
        elif tensor.name not in inside:
            found.append(original(tensor, tensor.name, architecture))
    return tuple(found)


def original(source: Source, name: str, architecture: Architecture) -> Weight:
    """One tensor of the source, as a weight called `name`. Raises InputError where a compressed one has no shape."""
    if isinstance(source, PackedTensor):
        if source.shape is None:
            raise InputError(f"the shape of `{source.name}` is written nowhere", why="its columns may be padded")
        return whole(source, name, architecture.classify(name), source.dtype, source.shape)
    return whole(source, name, architecture.classify(name), source.dtype, source.shape)


def _decoded(packed: PackedTensor, source: Checkpoint, architecture: Architecture) -> Weight:
    name = packed.name
    # One published generation left `.weight` out of the names of packed tensors.
    if architecture.classify(name).roles == ("other",) and name + ".weight" not in source.tensors:
        suffixed = name + ".weight"
        name = suffixed if architecture.classify(suffixed).roles != ("other",) else name
    return original(packed, name, architecture)


def to_json(value: Mapping[str, Any]) -> bytes:
    """Indented JSON with a last newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
