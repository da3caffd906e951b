"""The two tensors that a weight of a native folder became, and what the folder says of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tq_kernels.types import FloatDtype

from tqcli.checkpoint.header import TensorInfo
from tqcli.codec.floats import is_float_dtype
from tqcli.errors import InputError
from tqcli.formats.native import TQ_CONFIG_NAME


@dataclass(frozen=True)
class Pair:
    """format: its name in recipes, told by the endings. codes: the first tensor; beside: the one with the scales."""

    base: str
    format: str
    codes: TensorInfo
    beside: TensorInfo


@dataclass(frozen=True)
class Said:
    """entry: of this weight alone. config: tq_config.json. section: `quantization_config`. Each may be empty."""

    entry: Mapping[str, Any]
    config: Mapping[str, Any]
    section: Mapping[str, Any]

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What holds where the entry is silent."""
        return {**self.section, **self.config}

    @property
    def dtype(self) -> FloatDtype:
        """What the weight was before, where the folder says it; BF16, as nearly all are, where it does not."""
        dtype = self.entry.get("dtype")
        return dtype if isinstance(dtype, str) and is_float_dtype(dtype) else "BF16"

    def shape(self, base: str) -> tuple[int, ...] | None:
        """The original shape, where it is said. Raises InputError where it is none of a matrix."""
        shape = self.entry.get("shape")
        if shape is None:
            return None
        if not isinstance(shape, list) or len(shape) < 2 or not all(is_size(size) for size in shape):
            raise InputError(f"`{base}` has no usable shape in `{TQ_CONFIG_NAME}`", why=json.dumps(shape)[:80])
        return tuple(shape)


def is_size(value: object) -> bool:
    """Whether a number from a file can be a dimension."""
    return type(value) is int and value > 0
