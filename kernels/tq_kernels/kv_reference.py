"""Head vectors of a key-value cache in torch, for any device: what the native kernels of `kv` must equal, bit for bit.

A vector is cut into blocks. A block's numbers are multiplied by signs and by a Hadamard matrix, divided by their root
mean square and rounded to levels; beside the codes there is the factor of those levels. Vectors are columns here, so
that every step works on whole rows, and all sums are written out: what a vector becomes does not depend on the others.

A code is cut into fields of 4, 2 and 1 bits (3 = 2 + 1, 7 = 4 + 2 + 1; 8 bits are a byte), and a field of w bits of
all rows is stored as rows * w / 8 bytes: byte j holds the fields of rows j, j + n, j + 2n and so on, lowest bits first,
where n is that number of bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KvScale = Literal["length", "least-squares"]

# Numbers worked on at a time. 1 MB in float32 stays in a processor core's cache; other devices want more work a call.
_PIECE = {"cpu": 1 << 18}
_OTHER_PIECE = 1 << 24


@dataclass(frozen=True, eq=False)
class KvTables:
    """What all vectors of a codec have in common. block: numbers that share a scale, a power of two, 16 or more.

    levels: 2**bits, ascending; boundaries: the one fewer between them; signs: (block,), +1 or -1; all float32. scale:
    whether the factor makes what is read back as long as the block was, or as near to it as can be.
    """

    bits: int
    block: int
    levels: NDArray[np.float32]
    boundaries: NDArray[np.float32]
    signs: NDArray[np.float32]
    scale: KvScale = "length"


def encode(vectors: Tensor, tables: KvTables) -> tuple[Tensor, Tensor]:
    """uint8 (..., bytes) and float16 (..., blocks) of `vectors`, (..., a multiple of a block) of any floats."""
    blocks = vectors.detach().reshape(-1, tables.block)
    codes = torch.empty(len(blocks), packed_rows(tables.block, tables.bits), dtype=torch.uint8, device=blocks.device)
    scales = torch.empty(len(blocks), dtype=torch.float16, device=blocks.device)
    shared = _tensors(tables, blocks.device)
    with torch.no_grad():
        for piece in _pieces(blocks):
            packed, scale = _encode(blocks[piece].float().T.contiguous(), tables, *shared)
            codes[piece], scales[piece] = packed.T, scale
    each = vectors.shape[-1] // tables.block
    leading = vectors.shape[:-1]
    return codes.view(*leading, each * codes.shape[1]), scales.view(*leading, each)


def decode(codes: Tensor, scales: Tensor, tables: KvTables, dtype: torch.dtype) -> Tensor:
    """The vectors that codes and scales stand for, computed in float32."""
    flat = scales.reshape(-1)
    rows = codes.reshape(len(flat), packed_rows(tables.block, tables.bits))
    vectors = torch.empty(len(flat), tables.block, dtype=dtype, device=codes.device)
    levels, _, signs = _tensors(tables, codes.device)
    with torch.no_grad():
        for piece in _pieces(vectors):
            numbers = unpack(rows[piece].T.contiguous(), tables.block, tables.bits)
            values = levels.index_select(0, numbers.view(-1).int()).view_as(numbers)
            values.mul_(flat[piece].float().div_(tables.block**0.5))
            vectors[piece] = hadamard_transform(values).mul_(signs).T
    return vectors.view(*scales.shape[:-1], scales.shape[-1] * tables.block)


def packed_rows(rows: int, bits: int) -> int:
    """Bytes that `rows` codes take; rows is a multiple of 8."""
    return rows * bits // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 (rows, n) codes below 2**bits as uint8 (rows * bits / 8, n); rows is a multiple of 8."""
    return torch.cat([_fold((codes >> shift) & (2**width - 1), width) for shift, width in _fields(bits)])


def unpack(packed: Tensor, rows: int, bits: int) -> Tensor:
    """The uint8 (rows, n) codes that `pack` was given."""
    fields = _fields(bits)
    parts = torch.split(packed, [rows * width // 8 for _, width in fields])
    spread = [_spread(part, width) << shift for part, (shift, width) in zip(parts, fields, strict=True)]
    codes = spread[0]
    for part in spread[1:]:
        codes = codes | part
    return codes


def hadamard_transform(columns: Tensor) -> Tensor:
    """H times a float32 (block, n) matrix, H of entries +1 and -1 in Sylvester's order; not scaled. A new tensor."""
    block, count = columns.shape
    source, target = columns, torch.empty_like(columns)
    spare = torch.empty_like(columns)
    half = 1
    while half < block:
        pairs = source.view(block // (2 * half), 2, half, count)
        out = target.view(block // (2 * half), 2, half, count)
        torch.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        source, target, spare = target, spare, target
        half *= 2
    return source


def column_sums(columns: Tensor) -> Tensor:
    """The sum of each column, float32 (n,), halves added to halves: the same for a column among any others."""
    while columns.shape[0] > 1:
        half = columns.shape[0] // 2
        columns = columns[:half] + columns[half:]
    return columns[0]


def _encode(
    columns: Tensor, tables: KvTables, levels: Tensor, boundaries: Tensor, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """float32 (block, n) as uint8 (bytes, n) and float32 (n,)."""
    rotated = hadamard_transform(columns * signs)
    # Not being scaled, the transform makes the root mean square of a block's numbers the length that the block had.
    length = _root(column_sums(columns * columns))
    unit = rotated.div_(length.clamp_min(torch.finfo(torch.float32).tiny))
    codes = torch.bucketize(unit, boundaries, out_int32=True)
    nearest = levels.index_select(0, codes.view(-1)).view_as(unit)
    squares = column_sums(nearest * nearest)
    if tables.scale == "length":
        scale = length / _root(squares)
    else:
        scale = length / tables.block**0.5 * column_sums(unit * nearest) / squares
    return pack(codes.to(torch.uint8), tables.bits), scale


def _root(values: Tensor) -> Tensor:
    """float32. What torch calculates with on some CPUs does not always give the nearest number."""
    return values.double().sqrt_().float() if values.device.type == "cpu" else values.sqrt()


def _tensors(tables: KvTables, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """levels, boundaries and, of shape (block, 1), signs."""
    levels, boundaries, signs = (
        torch.tensor(one, device=device) for one in (tables.levels, tables.boundaries, tables.signs)
    )
    return levels, boundaries, signs[:, None]


def _pieces(blocks: Tensor) -> Iterator[slice]:
    step = max(1, _PIECE.get(blocks.device.type, _OTHER_PIECE) // blocks.shape[1])
    for start in range(0, len(blocks), step):
        yield slice(start, start + step)


def _fields(bits: int) -> list[tuple[int, int]]:
    """(lowest bit, width) of the fields of a code, highest first."""
    if bits == 8:
        return [(0, 8)]
    return [(bits & (width - 1), width) for width in (4, 2, 1) if bits & width]


def _fold(field: Tensor, width: int) -> Tensor:
    count = 8 // width
    parts = field.view(count, field.shape[0] // count, -1)
    folded = parts[0].clone()
    for number in range(1, count):
        folded |= parts[number] << (number * width)
    return folded


def _spread(folded: Tensor, width: int) -> Tensor:
    if width == 8:
        return folded
    return torch.cat([(folded >> shift) & (2**width - 1) for shift in range(0, 8, width)])
