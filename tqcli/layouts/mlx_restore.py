"""From mlx_lm's names back to the original ones: gate and up fused again, or experts one by one again, as the
architecture's checkpoints have them. Left out: towers, which MLX checkpoints do not hold.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tqcli.architectures.base import Architecture
from tqcli.checkpoint.reader import Checkpoint
from tqcli.errors import InputError
from tqcli.layouts.experts import expert_count, fused
from tqcli.layouts.files import same_names
from tqcli.layouts.mlx_names import MlxNames, names_of
from tqcli.readers.find import Contents
from tqcli.weights import Weight

_LEAVES = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def restored(contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
    """Every weight under its original name. Raises InputError for model types that are not known, and for experts
    that are not whole.
    """
    model_type = str(source.config.get("model_type"))
    names = names_of(model_type)
    leaves = _MIXTRAL if model_type == "mixtral" else _LEAVES
    here = same_names(contents, source, architecture)
    _check_whole(here, names, expert_count(source.config))
    weights: list[Weight] = []
    for weight in here:
        weights += _original(weight, names, leaves, architecture)
    return fused(weights, source.config) if architecture.stacked_experts else tuple(weights)


def _check_whole(weights: Iterable[Weight], names: MlxNames, expected: int | None) -> None:
    """Every module of experts has its three matrices, of as many experts each."""
    modules: dict[str, dict[str, Weight]] = {}
    for weight in weights:
        parent, leaf = _in_experts(weight.name, names)
        if parent:
            modules.setdefault(parent, {})[leaf] = weight
    for parent, stacks in modules.items():
        shapes = [stack.shape for stack in stacks.values()]
        count = expected or shapes[0][0]
        if stacks.keys() != _LEAVES.keys() or any(len(shape) != 3 or shape[0] != count for shape in shapes):
            found = ", ".join(f"`{leaf}` {list(stack.shape)}" for leaf, stack in list(stacks.items())[:4])
            raise InputError(f"the experts of `{parent}` are not whole", why=found)


def _in_experts(name: str, names: MlxNames) -> tuple[str, str]:
    """`<parent>.switch_mlp.up_proj.weight` -> `<parent>` and `up_proj`; nothing for other names."""
    if names.experts is None:
        return "", ""
    parent, _, leaf = name.removesuffix(".weight").partition(f".{names.experts}.")
    return (parent, leaf) if leaf else ("", "")


def _original(
    weight: Weight, names: MlxNames, leaves: Mapping[str, str], architecture: Architecture
) -> Iterator[Weight]:
    name = weight.name
    if names.multimodal and name.startswith("language_model.model."):
        name = "model.language_model." + name.removeprefix("language_model.model.")
    parent, leaf = _in_experts(name, names)
    if not parent:
        yield replace(weight, name=name, selector=name, role=architecture.classify(name))
        return
    experts, rows, columns = weight.shape
    for expert in range(experts):
        one = f"{parent}.experts.{expert}.{leaves[leaf]}.weight"
        yield replace(weight.part(one, expert * rows, (rows, columns), architecture.classify(one)), selector=one)
