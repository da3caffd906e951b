"""The trellis format: each weight is one of 256 levels, picked by the last 8 bits of a stream that gives it 2, 3 or 4.

A weight B of R rows and K columns becomes `B.trellis_codes`, uint8 (R, K * bits / 8), and `B.trellis_meta`, int16
(R, n): scale and start state of each group of 128 columns, the rest of a row in groups of 64, 32 and 16. Nothing is
padded and every group stands alone. The format page is docs/trellis-format.md. Left out: how codes are found.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tq_kernels import trellis
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.codec.trellis import tables, to_hex
from tqcli.codec.trellis_codebooks import codebook
from tqcli.formats.base import as_matrix
from tqcli.formats.native import PAIRS, USUAL_SEED
from tqcli.formats.options import FormatOptions

CODES, META = PAIRS["trellis"]

_SMALLEST_GROUP = min(trellis.GROUPS)
# Gaussian rows lose .069, .0178 and .0048; unrotated heavy tails, and groups of 16, several times that.
_ERROR_LIMITS = {2: 0.25, 3: 0.10, 4: 0.04}


class Trellis(FormatOptions):
    """Options of the trellis format. `candidates`: scales that the encoder tries a group; decoders do not see them.

    codebook: other levels than the format's own, 512 hexadecimal digits, as some other writer's folder may have.
    """

    format: Literal["trellis"] = "trellis"
    bits: Literal[2, 3, 4]
    rotation: Literal["hadamard", "none"] = "hadamard"
    seed: int = Field(default=USUAL_SEED, ge=0, lt=2**32, strict=True)
    candidates: Literal[1, 3, 5, 7] = 3
    codebook: str | None = Field(default=None, pattern="^[0-9a-f]{512}$")

    @property
    def label(self) -> str:
        """Such as `trellis3`; what another reader must know is named where it is unusual."""
        unrotated = " unrotated" if self.rotation == "none" else ""
        seed = f" seed {self.seed}" if self.seed != USUAL_SEED else ""
        return f"trellis{self.bits}{unrotated}{seed}"

    @property
    def error_limit(self) -> float:
        """See above."""
        return _ERROR_LIMITS[self.bits]

    @property
    def levels(self) -> str:
        """The codebook as configurations hold it."""
        return self.codebook or to_hex(codebook(self.bits))

    def refusal(self, shape: Shape) -> str:
        """Rows are cut into groups of 16 at least, and not padded."""
        columns = shape[-1]
        return f"{columns} columns are no multiple of {_SMALLEST_GROUP}" if columns % _SMALLEST_GROUP else ""

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:
        """The pair of tensors that `name` becomes, whatever its dtype."""
        del dtype
        rows, columns = as_matrix(shape)
        return (
            Stored(name + CODES, "U8", (rows, columns * self.bits // 8)),
            Stored(name + META, "I16", (rows, len(trellis.groups(columns)))),
        )

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """(rows, columns) -> codes uint8 (rows, columns * bits / 8), meta int16 (rows, groups)."""
        return trellis.encode(weight, dtype, self.tables)

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Codes and meta of some rows -> float32 (rows, columns)."""
        codes, meta = stored
        decoded: NDArray[np.float32] = trellis.decode(codes, meta, columns, self.tables)
        return decoded

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode, beside the codebook, of which a folder has one a width."""
        return {"bits": self.bits, "rotation": self.rotation, "seed": self.seed}

    @property
    def tables(self) -> trellis.TrellisTables:
        """The constants that the kernels need."""
        return tables(self.bits, self.rotation, self.seed, self.candidates, self.codebook)
