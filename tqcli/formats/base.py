"""What every stored format answers. A format is pure: names, shapes and arrays in, the same out; no files, no state.

Weights travel as two-dimensional arrays of rows, because every format here treats rows on their own: encoding a
matrix in pieces and joining the pieces gives the bytes of encoding it at once. That is what bounds memory.
"""

from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored


class Format(Protocol):
    """How one weight is stored."""

    @property
    def format(self) -> str:
        """Its name in recipes."""

    @property
    def label(self) -> str:
        """A few characters for tables, such as `tq3 g128`."""

    @property
    def block_rows(self) -> int:
        """Rows that are encoded together: pieces of a weight begin at multiples of it. 1 for most."""

    @property
    def error_limit(self) -> float:
        """The relative squared error above which a decode cannot be right. A decode gone wrong loses about 1."""

    def refusal(self, shape: Shape) -> str:
        """Why a weight of that shape cannot be stored so; empty where it can."""

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:
        """What the weight `name`, of that shape and source dtype, becomes on disk, in a fixed order."""

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """Encode rows: (rows, columns) of dtype BF16 (as uint16), F16 or F32 -> one array for each stored tensor.

        Stored tensors with `content` are left out. The first dimension of every array is rows, or blocks of rows.
        Raises tq_kernels.NonFiniteWeight with the row where a weight is NaN, Inf or too large.
        """

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """The weight that loaders see: the arrays that `encode` gives -> float32 (rows, columns)."""

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode: this format's keys in config.json and tq_config.json."""


@runtime_checkable
class SchemeFormat(Format, Protocol):
    """A format of compressed-tensors: what its section of config.json says of it. Hashable."""

    @property
    def scheme_name(self) -> str:
        """The key in `config_groups`."""

    def scheme(self) -> dict[str, Any]:
        """The entry of `config_groups`, with `format` and `targets`."""


@runtime_checkable
class AbsmaxFormat(Format, Protocol):
    """A format that encodes rows only once it knows the greatest magnitude of all weights that share a scale."""

    def with_absmax(self, absmax: float) -> Format:
        """The format for those weights."""


def as_matrix(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a weight: all leading dimensions are rows, the last is columns."""
    return prod(shape[:-1]), shape[-1]
