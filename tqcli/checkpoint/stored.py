"""A tensor as it lies, or will lie, in a safetensors file: name, dtype, shape. No data."""

from dataclasses import dataclass
from math import prod

from tqcli.checkpoint.header import DTYPE_BITS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """One tensor on disk. dtype: a safetensors name."""

    name: str
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of data, without the header."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8
