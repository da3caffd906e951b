"""A tensor as it lies, or will lie, in a safetensors file: name, dtype, shape. No data."""

from dataclasses import dataclass
from math import prod

from tqcli.checkpoint.header import DTYPE_BITS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """One tensor on disk. dtype: a safetensors name.

    content: its bytes, where they do not depend on the weights (sizes, tables).
    block_rows: how many rows of the weight one entry of the first dimension stands for.
    """

    name: str
    dtype: str
    shape: Shape
    content: bytes | None = None
    block_rows: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of data, without the header."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8
