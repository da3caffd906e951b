"""Head vectors as packed codes and half-precision scales, and back.

A head vector is cut into blocks (`block_size`; one for a power of two). Of each block, the signed and rotated
numbers are divided by their root mean square and rounded to Lloyd-Max levels; the one number stored beside the codes is
the factor of those levels. By `length` it makes what is read back as long as the block was (norm correction), by
`least-squares` as near to it as can be. The factor is of the size of one number, not of the vector, so that half
precision holds whatever a half-precision model computes.

A token's bytes depend on that token alone, bit for bit, whatever is quantised with it. NaN and infinity come back as
numbers that are not finite. Written in torch operations, for any device.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tqcli.kv import levels, packing, rotation
from tqcli.kv.blocks import block_size

# Numbers worked on at a time. 1 MB in float32 stays in a processor core's cache; other devices want more work a call.
_PIECE = {"cpu": 1 << 18}
_OTHER_PIECE = 1 << 24


class Packed(NamedTuple):
    """codes: uint8 (..., bytes). scales: float16 (..., blocks). Both with the leading axes of the vectors."""

    codes: Tensor
    scales: Tensor


class Codec(NamedTuple):
    """How the vectors of one head size are stored. size: numbers of a vector. scale: one of `settings.SCALES`."""

    size: int
    bits: int
    seed: int
    scale: str = "length"

    @property
    def block(self) -> int:
        """Numbers that share a scale."""
        return block_size(self.size)

    @property
    def code_bytes(self) -> int:
        """Bytes of one vector's codes."""
        return packing.packed_rows(self.size, self.bits)

    @property
    def bytes(self) -> int:
        """Bytes of one vector, scales included."""
        return self.code_bytes + 2 * (self.size // self.block)


class _Tables(NamedTuple):
    """What all vectors of a codec have in common, float32: levels (2**bits,), boundaries between them, signs."""

    levels: Tensor
    boundaries: Tensor
    signs: Tensor


def quantise(vectors: Tensor, codec: Codec) -> Packed:
    """Pack `vectors`, (..., codec.size) of any floating dtype, each by itself."""
    blocks = vectors.detach().reshape(-1, codec.block)
    codes = torch.empty(
        len(blocks), packing.packed_rows(codec.block, codec.bits), dtype=torch.uint8, device=blocks.device
    )
    scales = torch.empty(len(blocks), dtype=torch.float16, device=blocks.device)
    tables = _tables(codec, blocks.device)
    with torch.no_grad():
        for piece in _pieces(blocks):
            packed, scale = _encode(blocks[piece].float().T.contiguous(), codec, tables)
            codes[piece], scales[piece] = packed.T, scale
    leading = vectors.shape[:-1]
    return Packed(codes.view(*leading, codec.code_bytes), scales.view(*leading, codec.size // codec.block))


def dequantise(packed: Packed, codec: Codec, dtype: torch.dtype) -> Tensor:
    """The vectors that `packed` stands for: (..., codec.size) of `dtype`, computed in float32."""
    scales = packed.scales.reshape(-1)
    codes = packed.codes.reshape(len(scales), packing.packed_rows(codec.block, codec.bits))
    vectors = torch.empty(len(scales), codec.block, dtype=dtype, device=codes.device)
    tables = _tables(codec, codes.device)
    with torch.no_grad():
        for piece in _pieces(vectors):
            vectors[piece] = _decode(codes[piece].T.contiguous(), scales[piece], codec, tables).T
    return vectors.view(*packed.scales.shape[:-1], codec.size)


def _encode(columns: Tensor, codec: Codec, tables: _Tables) -> tuple[Tensor, Tensor]:
    """float32 (block, n) as uint8 (bytes, n) and float32 (n,)."""
    rotated = rotation.hadamard_transform(columns * tables.signs)
    # Not being scaled, the transform makes the root mean square of a block's numbers the length that the block had.
    length = rotation.column_sums(columns * columns).sqrt_()
    unit = rotated.div_(length.clamp_min(torch.finfo(torch.float32).tiny))
    codes = torch.bucketize(unit, tables.boundaries, out_int32=True)
    nearest = tables.levels.index_select(0, codes.view(-1)).view_as(unit)
    squares = rotation.column_sums(nearest * nearest)
    if codec.scale == "length":
        scale = length / squares.sqrt()
    else:
        scale = length / codec.block**0.5 * rotation.column_sums(unit * nearest) / squares
    return packing.pack(codes.to(torch.uint8), codec.bits), scale


def _decode(packed: Tensor, scales: Tensor, codec: Codec, tables: _Tables) -> Tensor:
    """uint8 (bytes, n) and float16 (n,) as float32 (block, n)."""
    codes = packing.unpack(packed, codec.block, codec.bits)
    values = tables.levels.index_select(0, codes.view(-1).int()).view_as(codes)
    values.mul_(scales.float().div_(codec.block**0.5))
    return rotation.hadamard_transform(values).mul_(tables.signs)


def _tables(codec: Codec, device: torch.device) -> _Tables:
    values = levels.levels(codec.bits)
    return _Tables(
        torch.tensor(values, dtype=torch.float32, device=device),
        torch.tensor(levels.boundaries(values), dtype=torch.float32, device=device),
        rotation.signs(codec.block, codec.seed, device),
    )


def _pieces(blocks: Tensor) -> Iterator[slice]:
    step = max(1, _PIECE.get(blocks.device.type, _OTHER_PIECE) // blocks.shape[1])
    for start in range(0, len(blocks), step):
        yield slice(start, start + step)
