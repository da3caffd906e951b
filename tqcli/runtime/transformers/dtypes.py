"""The dtype that each parameter should have once loaded: the model's, or float32 where the model asks for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import build_glob_alternation

from tqcli.runtime.transformers.weight import TqWeight


def planned_dtype(model: Any, dtype: torch.dtype) -> Callable[[str, torch.dtype], torch.dtype]:
    """A function from a parameter's name, and its dtype on the meta device, to its dtype once loaded."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)  # noqa: SLF001  # transformers has no public way
    if not plan:
        return lambda _, declared: declared
    alternation, by_group, _ = build_glob_alternation(list(plan))

    def planned(name: str, declared: torch.dtype) -> torch.dtype:
        match = alternation.search(name)
        return declared if match is None else plan[by_group[match.lastgroup]]

    return planned


def correct_dtypes(model: Any, expected: dict[str, torch.dtype]) -> None:
    """Cast the parameters that were not.

    Up to transformers 5.5, a tensor of a quantised checkpoint that was renamed on its way keeps its dtype.
    """
    for path, module in model.named_modules():
        if isinstance(module, TqWeight):
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            wanted = expected.get(f"{path}.{leaf}")
            if wanted is not None and parameter.dtype != wanted and parameter.is_floating_point():
                _replace(module, leaf, parameter, wanted)


def _replace(module: nn.Module, leaf: str, parameter: nn.Parameter, dtype: torch.dtype) -> None:
    cast = nn.Parameter(parameter.detach().to(dtype), requires_grad=parameter.requires_grad)
    cast.__dict__.update(parameter.__dict__)
    setattr(module, leaf, cast)
