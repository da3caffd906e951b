"""HLWQ: blocks of 128 weights, rotated without signs, one index a weight, one half-precision norm a block.

A weight K of R rows and C columns becomes `K__packed`, uint8 (R * n * 16 * bits,), `K__norms`, float16 (R, n), and
`K__meta`, int64 (5,), where n = ceil(C / 128) and the last block is padded with zeros. The file does not say which
table of levels it means: published ones mean `truncated`, so a reader must be told of any other. Two weak spots are the
format's: without signs a block along a Walsh row, such as a constant one, loses up to half of its energy, and a norm
must fit float16: one above 65504 is refused, one below 6e-8 becomes 0. Left out: the older ways to lay out the
same numbers (`tqcli.codec.hlwq_variants`), and the names of published folders.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tq_kernels import hlwq
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.codec.hlwq_tables import levels, midpoints
from tqcli.formats.base import as_matrix
from tqcli.formats.options import FormatOptions

PACKED = "__packed"
NORMS = "__norms"
META = "__meta"

# Gaussian rows lose .116, .034, .0093, .0029, .0010 and .0001 of their energy. The floor leaves room for weights with
# an offset, whose clipped coordinates cost the same at any width.
_ERROR_LIMITS = {2: 0.29, 3: 0.085, 4: 0.025, 5: 0.02, 6: 0.02, 8: 0.02}


class Hlwq(FormatOptions):
    """Options of HLWQ. `table`: the levels; any other than `truncated` is decoded wrongly by other readers."""

    format: Literal["hlwq"] = "hlwq"
    bits: Literal[2, 3, 4, 5, 6, 8] = 5
    table: Literal["truncated", "unbounded", "lloyd-max"] = "truncated"

    @property
    def label(self) -> str:
        """Such as `hlwq5`; another table than the usual one is another format to every reader."""
        return f"hlwq{self.bits}" + (f" {self.table}" if self.table != "truncated" else "")

    @property
    def error_limit(self) -> float:
        """About 2.5 times what Gaussian rows lose, but .02 at least."""
        return _ERROR_LIMITS[self.bits]

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:
        """The three tensors that `name` becomes, whatever its dtype."""
        del dtype
        rows, columns = as_matrix(shape)
        count = hlwq.blocks(columns)
        total = rows * count * hlwq.BLOCK
        meta = np.array([rows, count, hlwq.BLOCK, total, columns], dtype="<i8")
        return (
            Stored(name + PACKED, "U8", (total // 8 * self.bits,)),
            Stored(name + NORMS, "F16", (rows, count)),
            Stored(name + META, "I64", (len(meta),), content=meta.tobytes()),
        )

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """(rows, columns) -> packed uint8 (rows * n * 16 * bits,), norms float16 (rows, n)."""
        return hlwq.encode(weight, dtype, midpoints(self.table, self.bits))

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Packed indices and norms of some rows -> float32 (rows, columns)."""
        packed, norms = stored
        return hlwq.decode(packed, norms, columns, levels(self.table, self.bits))

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode."""
        return {"bits": self.bits, "block_size": hlwq.BLOCK, "table": self.table}
