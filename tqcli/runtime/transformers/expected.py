"""What each tensor of the model should be once loaded, and whether it is.

transformers checks shapes and casts dtypes while loading, but not in every release and not for every tensor of a
quantised checkpoint. Here it is checked again at the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.core_model_loading import build_glob_alternation

from tqcli.errors import InputError
from tqcli.formats.native import SUFFIXES


@dataclass(frozen=True)
class Expected:
    """A tensor of the state dict, while the model still is on the meta device."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def expectations(model: Any, dtype: torch.dtype) -> dict[str, Expected]:
    """For every tensor of the state dict, by name. dtype: the one that the model is loaded in.

    What is packed keeps the dtype that it has on disk, whatever the model wants its weights to be in.
    """
    planned = planned_dtype(model, dtype)
    return {
        name: Expected(tuple(tensor.shape), tensor.dtype if name.endswith(SUFFIXES) else planned(name, tensor.dtype))
        for name, tensor in model.state_dict().items()
    }


def planned_dtype(model: Any, dtype: torch.dtype) -> Callable[[str, torch.dtype], torch.dtype]:
    """From a tensor's name and its dtype on the meta device to its dtype once loaded: some stay float32."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)  # noqa: SLF001  # transformers has no public way
    if not plan:
        return lambda _, declared: declared
    alternation, by_group, _ = build_glob_alternation(list(plan))

    def planned(name: str, declared: torch.dtype) -> torch.dtype:
        match = alternation.search(name)
        return declared if match is None else plan[by_group[match.lastgroup]]

    return planned


def settle(model: Any, expected: Mapping[str, Expected]) -> None:
    """Check shapes, and cast what was not cast, such as tensors that were renamed (transformers 5.5).

    Tensors that are offloaded are not here to be seen. Raises InputError for a shape that is not the expected one.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        wanted = expected.get(name)
        if wanted is None or tensor.device.type == "meta":
            continue
        if tuple(tensor.shape) != wanted.shape:
            raise wrong_shape(name, tuple(tensor.shape), wanted.shape)
        if tensor.dtype != wanted.dtype and tensor.is_floating_point() and wanted.dtype.is_floating_point:
            # In place, so that tied parameters stay tied.
            tensor.data = tensor.data.to(wanted.dtype)


def wrong_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> InputError:
    """The error for a tensor that does not fit."""
    return InputError(
        f"tensor `{name}` does not fit the model", why=f"it is {list(found)}, the model wants {list(wanted)}"
    )
