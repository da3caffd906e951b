"""Conversions that are ours: decoding while loading, and taking merged experts apart while saving."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.core_model_loading import MergeModulelist, SplitModulelist, WeightConverter

from tqcli.formats.native import PAIRS
from tqcli.runtime.transformers.operations import DecodePacked, Plain


def decoding(plain: Mapping[str, Plain], base_prefix: str) -> list[Any]:
    """Converters that decode the parameters `plain`, by name, while they are loaded.

    One serves the same parameter of all layers, so that there are few patterns to try for each tensor.
    """
    operation = DecodePacked(dict(plain))
    wanted = sorted({(_tail(name, base_prefix), parameter.stored_as.format) for name, parameter in plain.items()})
    return [
        WeightConverter([rf"{re.escape(tail)}\{ending}$" for ending in PAIRS[stored_as]], tail, operations=[operation])
        for tail, stored_as in wanted
    ]


def for_saving(used: Iterable[Any], ours: Sequence[Any]) -> list[Any]:
    """The conversions that saving must undo: those used for loading, without ours, which are for loading only."""
    kept = [entry for entry in used if not any(entry is conversion for conversion in ours)]
    for entry in kept:
        if isinstance(entry, WeightConverter):
            entry.operations = [
                Merge(operation.dim) if type(operation) is MergeModulelist else operation
                for operation in entry.operations
            ]
    return kept


class Merge(MergeModulelist):  # type: ignore[misc]
    """transformers' own, undone by `Split`."""

    @property
    def reverse_op(self) -> Any:
        """What takes the experts apart."""
        return Split(self.dim)


class Split(SplitModulelist):  # type: ignore[misc]
    """transformers' own, but an expert keeps its dimensions of size 1, as norms of one group a row have it.

    Releases before 5.23 squeeze them away.
    """

    def convert(self, input_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """{pattern: tensor} -> {name: tensor} of each item along the dimension."""
        whole = [value[0] if isinstance(value, list) else value for value in input_dict.values()]
        parts = iter(super().convert(input_dict, *args, **kwargs).items())
        result = {}
        for tensor in whole:
            shape = tensor.shape[: self.dim] + tensor.shape[self.dim + 1 :]
            for _ in range(tensor.shape[self.dim]):
                name, part = next(parts)
                result[name] = part.reshape(shape)
        return result


def _tail(name: str, base_prefix: str) -> str:
    """What follows the last number in a name, with its dot; without a number, the name without the prefix."""
    match = re.fullmatch(r".*\.\d+(\..+)", name)
    return match.group(1) if match else name.removeprefix(f"{base_prefix}.")
