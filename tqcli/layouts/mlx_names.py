"""How mlx_lm calls the modules of each model type: which names change, which tensors it has no place for.

mlx_lm runs the language model alone, under `language_model.model.` where the checkpoint has towers too, and keeps all
experts of a layer in one module. Left out: model types whose matrices it cuts otherwise, such as deepseek_v3.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqcli.arrangement import LeftOut
from tqcli.errors import InputError
from tqcli.layouts.experts import LEAVES, expert_count, is_stack, stacked_apart
from tqcli.weights import Run, Weight, joined

_NO_TOWERS = "mlx_lm runs the language model alone"
_NOT_RUN = "mlx_lm does not run it"
_TOWERS = re.compile(r"(?:model\.)?(?:vision_tower|multi_modal_projector|audio_tower|embed_(?:audio|vision))\.")
_UNUSED = re.compile(r".*(?:self_attn\.rotary_emb\.|(?:input|output)_(?:max|min)$)")
_SHARED = re.compile(r".*\.self_attn\.(?:k_proj|v_proj|k_norm)\..*")


@dataclass(frozen=True)
class MlxNames:
    """One model type. experts: the module of all experts, after the parent of `experts`; None where there are none.

    plain_router: the router is no linear module there, so it is never compressed.
    """

    experts: str | None = None
    multimodal: bool = False
    drops_extra_layers: bool = False
    plain_router: bool = False


NAMES: Mapping[str, MlxNames] = {
    "gemma3": MlxNames(multimodal=True),
    "gemma3_text": MlxNames(),
    "gemma4": MlxNames(experts="experts.switch_glu", multimodal=True),
    "gemma4_text": MlxNames(experts="experts.switch_glu"),
    "glm4_moe": MlxNames(experts="switch_mlp", drops_extra_layers=True, plain_router=True),
    "llama": MlxNames(),
    "mistral": MlxNames(),
    "mixtral": MlxNames(experts="switch_mlp"),
    "phi3": MlxNames(),
    "qwen2": MlxNames(),
    "qwen3": MlxNames(),
    "qwen3_moe": MlxNames(experts="switch_mlp"),
}


def names_of(model_type: str) -> MlxNames:
    """Raises InputError for a model type that is not known here."""
    if model_type not in NAMES:
        fix = "known are " + ", ".join(f"`{name}`" for name in NAMES)
        raise InputError(f"`{model_type}` cannot be laid out for MLX", why="its modules' names are not known", fix=fix)
    return NAMES[model_type]


@dataclass(frozen=True)
class TextShape:
    """What config.json says of the language model. sharing: layers, the last ones, that use earlier keys and values.

    experts: how many a layer has, None where it is not said.
    """

    layers: int
    sharing: int
    tied: bool
    experts: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], layers: int) -> "TextShape":
        """From a whole config.json."""
        text = config.get("text_config")
        sections = (config, text if isinstance(text, Mapping) else {})
        sharing = sections[1].get("num_kv_shared_layers", sections[0].get("num_kv_shared_layers"))
        tied = any(section.get("tie_word_embeddings") is True for section in sections)
        return cls(layers, sharing if type(sharing) is int else 0, tied, expert_count(config))


def left_out(weight: Weight, names: MlxNames, text: TextShape) -> str:
    """Why mlx_lm has no place for a weight; empty where it has."""
    if names.multimodal and _TOWERS.match(weight.name):
        return _NO_TOWERS
    layer = -1 if weight.role.layer is None else weight.role.layer
    beyond = names.drops_extra_layers and layer >= text.layers
    shared = text.sharing > 0 and layer >= text.layers - text.sharing and bool(_SHARED.match(weight.name))
    tied_head = text.tied and weight.role.roles == ("head",)
    return _NOT_RUN if beyond or shared or tied_head or _UNUSED.match(weight.name) else ""


def arranged(originals: Sequence[Weight], names: MlxNames, text: TextShape) -> tuple[list[Weight], list[LeftOut]]:
    """The weights that mlx_lm has, under its names, and those that it has not."""
    weights: list[Weight] = []
    gone: list[LeftOut] = []
    experts: dict[str, list[Weight]] = {}
    for weight in originals:
        why = left_out(weight, names, text)
        if why:
            gone.append(LeftOut(weight, why))
        elif is_stack(weight):
            parent = weight.name.rpartition(".experts.")[0]
            weights += (_renamed(one, names) for one in stacked_apart(weight, f"{parent}.{names.experts}"))
        elif weight.role.expert is not None:
            experts.setdefault(weight.role.block, []).append(weight)
        else:
            weights.append(_renamed(weight, names))
    for block, ones in experts.items():
        weights += (_renamed(one, names) for one in _stacks(block, ones, names, text.experts))
    return weights, gone


def _stacks(block: str, weights: Iterable[Weight], names: MlxNames, expected: int | None) -> Iterator[Weight]:
    """Experts one by one -> one weight of all experts for each projection."""
    by_role: dict[str, list[Weight]] = {leaf: [] for leaf in LEAVES.values()}
    for weight in weights:
        by_role[LEAVES[weight.role.roles[0]]].append(weight)
    parent = block.rpartition(".experts")[0]
    count = expected or max(len(ones) for ones in by_role.values())
    for leaf, ones in by_role.items():
        ordered = sorted(ones, key=lambda one: one.role.expert or 0)
        indexes = [one.role.expert for one in ordered]
        if indexes != list(range(count)) or len({(one.shape, one.dtype) for one in ordered}) != 1:
            raise InputError(
                f"the experts of `{block}` are not whole", why=f"`{leaf}` of {len(ones)} of {count} experts"
            )
        first = ordered[0]
        runs: list[Run] = [run for one in ordered for run in one.runs]
        whole = replace(first, role=replace(first.role, expert=None))
        yield joined(whole, f"{parent}.{names.experts}.{leaf}.weight", (len(ordered), *first.shape), runs)


def _renamed(weight: Weight, names: MlxNames) -> Weight:
    if names.plain_router and weight.role.roles == ("router",):
        weight = replace(weight, role=replace(weight.role, roles=("norm",)))
    if not names.multimodal or not weight.name.startswith("model.language_model."):
        return weight
    return weight.renamed("language_model.model." + weight.name.removeprefix("model.language_model."))
