"""Put packed weights into a model that is still on the meta device, and take them out again."""

from enum import Enum
from typing import Any

from torch import nn

from tqcli.errors import InputError
from tqcli.runtime.transformers.experts import PROJECTIONS, is_packable
from tqcli.runtime.transformers.modules import TqEmbedding, TqLinear, TqTiedHead
from tqcli.runtime.transformers.weight import TqWeight


class Kind(Enum):
    """What a parameter becomes when its tensor is packed. PLAIN: it is decoded once, while loading."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    EXPERTS = "experts"
    PLAIN = "plain"


def kind_of(model: Any, name: str) -> Kind:
    """By the module that owns the parameter `name`, and by what is tied to it.

    Raises InputError for a parameter that is a tied copy of another: it has no tensor of its own.
    """
    owner, leaf = _owner(model, name)
    ties = model.all_tied_weights_keys
    if name in ties:
        raise InputError(
            f"`{name}` is packed on disk", why=f"the model's config ties it to `{ties[name]}`, which is there too"
        )
    copies = [copy for copy, source in ties.items() if source == name]
    if _is_plain_embedding(owner) and leaf == "weight" and all(_is_head(model, copy) for copy in copies):
        return Kind.EMBEDDING
    if copies:
        return Kind.PLAIN
    if type(owner) is nn.Linear and leaf == "weight":
        return Kind.LINEAR
    return Kind.EXPERTS if leaf in PROJECTIONS and is_packable(owner) else Kind.PLAIN


def put(model: Any, name: str, weight: TqWeight) -> list[str]:
    """Let `weight` stand for the parameter `name`. Returns the names of tied copies that are no parameters any more."""
    owner, leaf = _owner(model, name)
    path = name.rpartition(".")[0]
    kind = kind_of(model, name)
    if kind is Kind.LINEAR:
        model.set_submodule(path, TqLinear(owner, weight))
    elif kind is Kind.EMBEDDING:
        embedding = TqEmbedding(owner, weight)
        model.set_submodule(path, embedding)
        return _tie(model, name, embedding)
    elif kind is Kind.EXPERTS:
        # The module itself stays: activation, gate and number of experts are its own.
        delattr(owner, leaf)
        setattr(owner, leaf, weight)
    else:
        raise InputError(f"`{name}` cannot be kept packed")
    return []


def packed_weights(model: Any) -> dict[str, TqWeight]:
    """Every packed weight, by the name of the parameter it stands for."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TqWeight)}


def unpack(model: Any) -> None:
    """Replace every packed weight by a plain parameter, decoded."""
    heads = [(name, module) for name, module in model.named_modules() if isinstance(module, TqTiedHead)]
    for name, weight in packed_weights(model).items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if isinstance(owner, (TqLinear, TqEmbedding)):
            model.set_submodule(path, owner.unpacked())
        else:
            delattr(owner, leaf)
            owner.register_parameter(leaf, nn.Parameter(weight.decode(), requires_grad=False))
    for name, head in heads:
        table = model.get_input_embeddings().weight
        model.set_submodule(name, head.unpacked(table))


def _tie(model: Any, name: str, embedding: TqEmbedding) -> list[str]:
    copies = [copy for copy, source in model.all_tied_weights_keys.items() if source == name]
    for copy in copies:
        del model.all_tied_weights_keys[copy]
        model.set_submodule(copy.rpartition(".")[0], TqTiedHead(embedding))
    return copies


def _owner(model: Any, name: str) -> tuple[Any, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _is_plain_embedding(module: nn.Module) -> bool:
    """torch's own, or Gemma's, which scales what it looks up by a number."""
    if type(module) is nn.Embedding:
        return module.max_norm is None
    return isinstance(module, nn.Embedding) and hasattr(module, "scalar_embed_scale")


def _is_head(model: Any, name: str) -> bool:
    owner, leaf = _owner(model, name)
    return type(owner) is nn.Linear and leaf == "weight" and owner.bias is None
