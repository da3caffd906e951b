"""The switch between decoding packed weights and multiplying them as integers; `products` tells what that means."""

from typing import get_args

import torch
from torch import nn
from tq_kernels.backends import selected

from tqcli.errors import InputError
from tqcli.runtime.products import Activations
from tqcli.runtime.transformers.threads import limit_threads, release_threads
from tqcli.runtime.transformers.weight import TqWeight


def check_activations(activations: str) -> None:
    """Raise InputError for an unknown word, and for integers where the native kernels are not there."""
    if activations not in get_args(Activations):
        choices = " or ".join(f"`{one}`" for one in get_args(Activations))
        raise InputError(f"activations cannot be `{activations}`", fix=f"choose {choices}")
    if activations != "float" and selected()[1] is None:
        why = f"that needs the native kernels: {selected()[0].reason}"
        raise InputError(f"activations cannot be `{activations}` here", why=why, fix="choose `float`")


def set_activations(model: nn.Module, activations: Activations) -> None:
    """Say how a model's packed weights are multiplied, until it is said again. A model without any stays as it is.

    Products use as many threads as torch has when this is called; see also `threads`.
    Raises InputError as `check_activations` does.
    """
    check_activations(activations)
    threads = torch.get_num_threads()
    for weight in _weights(model):
        weight.activations, weight.threads = activations, threads
    if activations != "float":
        limit_threads(model, threads)
    else:
        release_threads(model)


def activations_of(model: nn.Module) -> Activations | None:
    """What was said last; None for a model without packed weights."""
    return next((weight.activations for weight in _weights(model)), None)


def _weights(model: nn.Module) -> list[TqWeight]:
    return [module for module in model.modules() if isinstance(module, TqWeight)]
