"""Head vectors as packed codes and half-precision scales, and back.

A head vector is cut into blocks (`block_size`; one for a power of two). Of each block, the signed and rotated numbers
are divided by their root mean square and rounded to Lloyd-Max levels; the one number stored beside the codes is the
factor of those levels. By `length` it makes what is read back as long as the block was (norm correction), by
`least-squares` as near to it as can be. The factor is of the size of one number, not of the vector, so that half
precision holds whatever a half-precision model computes.

A token's bytes depend on that token alone, bit for bit, whatever is quantised with it. NaN and infinity come back as
numbers that are not finite. The arithmetic is that of `tq_kernels.kv`, for any device.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tq_kernels import kv
from tq_kernels.kv_reference import KvScale, KvTables, packed_rows

from tqcli.codec import hadamard
from tqcli.kv import levels
from tqcli.kv.blocks import block_size


class Packed(NamedTuple):
    """codes: uint8 (..., bytes). scales: float16 (..., blocks). Both with the leading axes of the vectors."""

    codes: Tensor
    scales: Tensor


class Codec(NamedTuple):
    """How the vectors of one head size are stored. size: numbers of a vector. scale: one of `settings.SCALES`."""

    size: int
    bits: int
    seed: int
    scale: KvScale = "length"

    @property
    def block(self) -> int:
        """Numbers that share a scale."""
        return block_size(self.size)

    @property
    def code_bytes(self) -> int:
        """Bytes of one vector's codes."""
        return packed_rows(self.size, self.bits)

    @property
    def bytes(self) -> int:
        """Bytes of one vector, scales included."""
        return self.code_bytes + 2 * (self.size // self.block)


def quantise(vectors: Tensor, codec: Codec) -> Packed:
    """Pack `vectors`, (..., codec.size) of any floating dtype, each by itself. ValueError for other sizes."""
    if vectors.shape[-1] != codec.size:
        raise ValueError(f"vectors of {vectors.shape[-1]} numbers do not go with a codec for {codec.size}")
    return Packed(*kv.encode(vectors, _tables(codec)))


def dequantise(packed: Packed, codec: Codec, dtype: torch.dtype) -> Tensor:
    """The vectors that `packed` stands for: (..., codec.size) of `dtype`, computed in float32.

    ValueError where they are of another size.
    """
    if packed.scales.shape[-1] * codec.block != codec.size:
        raise ValueError(f"{packed.scales.shape[-1]} scales do not go with a codec for {codec.size} numbers")
    return kv.decode(packed.codes, packed.scales, _tables(codec), dtype)


@lru_cache(maxsize=64)
def _tables(codec: Codec) -> KvTables:
    values = levels.levels(codec.bits)
    return KvTables(
        codec.bits,
        codec.block,
        np.array(values, np.float32),
        np.array(levels.boundaries(values), np.float32),
        np.array(hadamard.signs(codec.block, codec.seed)[0], np.float32),
        codec.scale,
    )
