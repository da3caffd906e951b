"""From mlx_lm's names back to the original ones: gate and up fused again, or experts one by one again, as the
architecture's checkpoints have them. Left out: towers, which MLX checkpoints do not hold.
"""

from collections.abc import Iterator
from dataclasses import replace

from tqcli.architectures.base import Architecture
from tqcli.checkpoint.reader import Checkpoint
from tqcli.layouts.experts import fused
from tqcli.layouts.files import same_names
from tqcli.layouts.mlx_names import MlxNames, names_of
from tqcli.readers.find import Contents
from tqcli.weights import Weight

_LEAVES = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def restored(contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
    """Every weight under its original name. Raises InputError for model types that are not known."""
    model_type = str(source.config.get("model_type"))
    names = names_of(model_type)
    leaves = _MIXTRAL if model_type == "mixtral" else _LEAVES
    weights: list[Weight] = []
    for weight in same_names(contents, source, architecture):
        weights += _original(weight, names, leaves, architecture)
    return fused(weights, source.config) if architecture.stacked_experts else tuple(weights)


def _original(weight: Weight, names: MlxNames, leaves: dict[str, str], architecture: Architecture) -> Iterator[Weight]:
    name = weight.name
    if names.multimodal and name.startswith("language_model.model."):
        name = "model.language_model." + name.removeprefix("language_model.model.")
    parent, found, leaf = name.partition(f".{names.experts}.") if names.experts else (name, "", "")
    if not found:
        yield replace(weight, name=name, selector=name, role=architecture.classify(name))
        return
    experts, rows, columns = weight.shape
    projection = leaves[leaf.removesuffix(".weight")]
    for expert in range(experts):
        one = f"{parent}.experts.{expert}.{projection}.weight"
        yield replace(weight.part(one, expert * rows, (rows, columns), architecture.classify(one)), selector=one)
