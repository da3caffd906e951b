"""From tensor names on disk to parameter names in the model, by transformers' own conversions.

Some models change names while they load: prefixes, and experts that lie one by one on disk and in one piece in
memory. Nothing here guesses: the conversions are asked, and those that packed rows would not survive are refused.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from tqcli.formats.native import PAIRS

# The formats of an early generation of checkpoints, whose pairs may be named without the `.weight` of the parameter.
UNSUFFIXED = ("tq",)


@dataclass(frozen=True)
class Target:
    """Where a tensor on disk goes. operations: what is done to it on the way; none if it is only renamed."""

    name: str
    operations: tuple[Any, ...] = ()

    @property
    def is_merged(self) -> bool:
        """Whether several tensors become one with a dimension more, such as one expert of many."""
        return any(isinstance(operation, MergeModulelist) for operation in self.operations)

    @property
    def keeps_rows(self) -> bool:
        """Whether whole rows stay whole rows, so that packed rows can go the same way."""
        merged = False
        for operation in self.operations:
            if isinstance(operation, MergeModulelist) and operation.dim == 0 and not merged:
                merged = True
            elif not isinstance(operation, Concatenate) or operation.dim != int(merged):
                return False
        return True


class Names:
    """The conversions of one model that is still plain (its state dict has no packed names)."""

    def __init__(self, model: Any) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._state = model.state_dict()
        patterns = model._keys_to_ignore_on_load_unexpected or ()  # noqa: SLF001  # no public way
        self._ignored = [re.compile(pattern) for pattern in patterns]

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def is_ignored(self, name: str) -> bool:
        """Whether the model knows of this tensor and does without it, such as a head for several tokens."""
        return any(pattern.search(name) for pattern in self._ignored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor of the model."""
        return tuple(self._state[name].shape)

    def target(self, name: str) -> Target:
        """Where the tensor `name` goes; a name that the model does not have if it has no place."""
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._state)
        if pattern is None or renamed not in self._state:
            return Target(name if renamed not in self._state and name in self._state else renamed)
        converter = next(entry for entry in self._converters if pattern in entry.source_patterns)
        return Target(renamed, tuple(converter.operations))


def unsuffixed_renamings(names: Iterable[str]) -> list[Any]:
    """Renamings for checkpoints whose pairs are named without `.weight`.

    names: base names such as `model.layers.0.self_attn.q_proj`.
    """
    leaves = sorted({name.rpartition(".")[2] for name in names})
    return [
        WeightRenaming(rf"\.{leaf}\{suffix}$", f".{leaf}.weight{suffix}")
        for leaf in leaves
        for stored_as in UNSUFFIXED
        for suffix in PAIRS[stored_as]
    ]
