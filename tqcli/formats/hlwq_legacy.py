"""HLWQ weights as older programs laid them out: read, never written.

The blocks, the norms and the rotation are the format's own (`formats.hlwq`); the indices are packed otherwise, each
weight may have a width of its own, and the levels come from the file or are those that its program meant. Left out:
how a folder tells which (`readers.hlwq_weight`).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tq_kernels.hlwq import BLOCK
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.codec.hlwq_tables import TABLES, Table, levels
from tqcli.codec.hlwq_variants import Packing, decode_codes
from tqcli.errors import InputError
from tqcli.formats.hlwq import Hlwq

# Levels that a file stores divided by sqrt(128) come back to within a few units in the last place.
_SAME = 1e-5


@dataclass(frozen=True)
class HlwqLegacy:
    """packing: of the indices. levels: 2**bits of them, ascending, in standard deviations."""

    packing: Packing
    bits: int
    levels: tuple[float, ...]
    format: str = "hlwq"

    @property
    def table(self) -> Table | None:
        """The known table that the levels are, if they are one."""
        return known_table(self.levels)

    @property
    def label(self) -> str:
        """Such as `hlwq4 unbounded half-blocks`."""
        table = {"truncated": "", None: " own levels"}.get(self.table, f" {self.table}")
        return f"hlwq{self.bits}{table} {self.packing}"

    @property
    def block_rows(self) -> int:
        """Every row stands alone."""
        return 1

    @property
    def error_limit(self) -> float:
        """As for the format that is written."""
        return Hlwq.model_validate({"bits": self.bits}).error_limit

    def refusal(self, shape: Shape) -> str:
        """Nothing is written so."""
        del shape
        return "older layouts are only read"

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:
        """Never asked for: `refusal` refuses every weight."""
        raise NotImplementedError(name, shape, dtype)

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """Never asked for: `refusal` refuses every weight."""
        raise NotImplementedError(weight.shape, dtype)

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Indices, uint8 or int8, and norms, float16 (rows, blocks) -> float32 (rows, columns).

        Raises InputError for an index that has no level.
        """
        codes, norms = stored
        try:
            return decode_codes(codes, self.packing, norms, _array(self.levels), columns)
        except ValueError as error:
            raise InputError("an HLWQ weight is damaged", why=str(error)) from error

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode."""
        return {"bits": self.bits, "block_size": BLOCK, "table": self.table or "own levels", "packing": self.packing}


@lru_cache(maxsize=256)
def known_table(values: tuple[float, ...]) -> Table | None:
    """The table whose levels these are, to within rounding."""
    bits = len(values).bit_length() - 1
    given = np.array(values, dtype=np.float64)
    fitting = (table for table in TABLES if float(np.abs(levels(table, bits) - given).max()) < _SAME)
    return next(fitting, None)


@lru_cache(maxsize=256)
def _array(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)
