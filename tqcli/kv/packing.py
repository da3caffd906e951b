"""Codes of 2 to 8 bits as bytes without a gap, along the first axis of a matrix.

A code is cut into fields of 4, 2 and 1 bits (3 = 2 + 1, 7 = 4 + 2 + 1; 8 bits are a byte), and a field of w bits of all
rows is stored as rows * w / 8 bytes: byte j holds the fields of rows j, j + n, j + 2n and so on, lowest bits first,
where n is that number of bytes. Every step is then one operation on whole contiguous rows.
"""

import torch
from torch import Tensor


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
