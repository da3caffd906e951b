"""The native TurboQuant format: rotated groups, Lloyd-Max indices, one float32 norm a group.

A weight B of R rows and K columns becomes `B.tq_packed`, uint8 (R * n, bytes a group), and `B.tq_norms`, float32
(R, n), where n = ceil(K / group_size) and the last group is padded with zeros. These are the bytes of the published
TQ3 checkpoints; their readers decode ours. Left out here: where the tensors lie and what else the folder holds.
"""

from typing import Any, Literal

import numpy as np
import tq_kernels
from numpy.typing import NDArray
from pydantic import Field
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.codec.turboquant import bytes_per_group, groups, tables
from tqcli.formats.base import as_matrix
from tqcli.formats.native import NORMS, PACKED, USUAL_SEED
from tqcli.formats.options import FormatOptions

_ERROR_LIMITS = {2: 0.25, 3: 0.10, 4: 0.04}


class Tq(FormatOptions):
    """Options of the native format. `scale` is how the encoder chooses the norm; decoders do not see it."""

    format: Literal["tq"] = "tq"
    bits: Literal[2, 3, 4]
    group_size: Literal[32, 64, 128, 256] = 128
    seed: int = Field(default=USUAL_SEED, ge=0, lt=2**32, strict=True)
    scale: Literal["norm", "search"] = "search"

    @property
    def label(self) -> str:
        """Such as `tq3 g128`; another seed than the usual one is another format to every reader."""
        seed = f" seed {self.seed}" if self.seed != USUAL_SEED else ""
        return f"tq{self.bits} g{self.group_size}{seed}"

    @property
    def error_limit(self) -> float:
        """Gaussian rows lose .118, .034 and .009 of their energy."""
        return _ERROR_LIMITS[self.bits]

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:
        """The pair of tensors that `name` becomes, whatever its dtype."""
        del dtype
        rows, columns = as_matrix(shape)
        count = groups(columns, self.group_size)
        return (
            Stored(name + PACKED, "U8", (rows * count, bytes_per_group(self.bits, self.group_size))),
            Stored(name + NORMS, "F32", (rows, count)),
        )

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """(rows, columns) -> codes uint8 (rows * n, bytes a group), norms float32 (rows, n)."""
        constants = tables(self.bits, self.group_size, self.seed)
        return tq_kernels.encode(weight, dtype, constants, scale=self.scale)

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Codes and norms of some rows -> float32 (rows, columns)."""
        codes, norms = stored
        constants = tables(self.bits, self.group_size, self.seed)
        decoded: NDArray[np.float32] = tq_kernels.decode(codes, norms, columns, constants, dtype="F32")
        return decoded

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode."""
        return {"bits": self.bits, "group_size": self.group_size, "seed": self.seed}
