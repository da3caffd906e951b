"""Uniform quantisation, symmetric, to 8 or 4 bits: for embeddings and heads, whose rows are read one by one.

A weight B of R rows and K columns becomes `B.uniform_codes`, int8 (R, K) at 8 bits or uint8 (R, ceil(K / 2)) at 4, and
`B.uniform_scales`, float16 (R, ceil(K / group_size)); the last group of a row is as short as it comes. Row r of the
weight is row r of both, and a weight reads as code * scale. The page is docs/uniform-format.md; how scales are chosen
is told in tq_kernels.uniform. Left out here: where the tensors lie and what else the folder holds.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from tq_kernels import uniform
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.formats.base import as_matrix
from tqcli.formats.native import PAIRS
from tqcli.formats.options import FormatOptions

CODES, SCALES = PAIRS["uniform"]

# Normal weights lose 3e-5 to 5e-5 and .0066 to .0123, those with a few columns twenty times as large up to
# .0008 and .11.
_ERROR_LIMITS = {8: 0.001, 4: 0.12}
_USUAL_GROUP_AT_4_BITS = 64


class Uniform(FormatOptions):
    """Options of the format. `scale` is how the encoder chooses scales; decoders do not see it.

    group_size is 64 where bits is 4 and nothing else is said.
    """

    format: Literal["uniform"] = "uniform"
    bits: Literal[4, 8] = 8
    group_size: Literal[32, 64, 128, 256] = 128
    scale: Literal["absmax", "search"] = "search"

    @model_validator(mode="before")
    @classmethod
    def _usual_group(cls, given: Any) -> Any:
        """The usual group depends on the width: 4 bits need smaller ones."""
        if isinstance(given, Mapping) and given.get("bits") == 4:
            return {"group_size": _USUAL_GROUP_AT_4_BITS, **given}
        return given

    @property
    def label(self) -> str:
        """Such as `uniform8 g128`."""
        return f"uniform{self.bits} g{self.group_size}"

    @property
    def error_limit(self) -> float:
        """Above this a decode cannot be right."""
        return _ERROR_LIMITS[self.bits]

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:
        """The pair of tensors that `name` becomes, whatever its dtype."""
        del dtype
        rows, columns = as_matrix(shape)
        return (
            Stored(name + CODES, "I8" if self.bits == 8 else "U8", (rows, uniform.row_bytes(columns, self.bits))),
            Stored(name + SCALES, "F16", (rows, uniform.groups(columns, self.group_size))),
        )

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """(rows, columns) -> codes int8 (rows, columns) or uint8 (rows, ceil(columns / 2)); float16 (rows, groups)."""
        return uniform.encode(weight, dtype, self.bits, self.group_size, self.scale)

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Codes and scales of some rows -> float32 (rows, columns)."""
        codes, scales = stored
        decoded: NDArray[np.float32] = uniform.decode(codes, scales, columns, self.bits, self.group_size)
        return decoded

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode."""
        return {"bits": self.bits, "group_size": self.group_size}
