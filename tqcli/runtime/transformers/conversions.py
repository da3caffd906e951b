"""Conversions that we add to a model's own while a packed checkpoint is loaded."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.core_model_loading import WeightConverter

from tqcli.runtime.transformers.headers import NORMS, PACKED
from tqcli.runtime.transformers.operations import DecodePacked, Plain


def decoding(plain: Mapping[str, Plain], base_prefix: str) -> list[Any]:
    """Converters that decode the parameters `plain`, by name, while they are loaded.

    One serves the same parameter of all layers, so that there are few patterns to try for each tensor.
    """
    operation = DecodePacked(dict(plain))
    tails = sorted({_tail(name, base_prefix) for name in plain})
    return [
        WeightConverter([rf"{re.escape(tail)}\{PACKED}$", rf"{re.escape(tail)}\{NORMS}$"], tail, operations=[operation])
        for tail in tails
    ]


def own_conversions(entry: Any, conversions: Sequence[Any]) -> bool:
    """Whether `entry` is one of `conversions`, itself and not an equal one."""
    return any(entry is conversion for conversion in conversions)


def _tail(name: str, base_prefix: str) -> str:
    """What follows the last number in a name, with its dot; without a number, the name without the prefix."""
    match = re.fullmatch(r".*\.\d+(\..+)", name)
    return match.group(1) if match else name.removeprefix(f"{base_prefix}.")
