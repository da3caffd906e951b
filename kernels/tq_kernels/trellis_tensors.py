"""Decoding trellis weights that are torch tensors: the kernels on the CPU, plain torch on every other device.

Both give the same bits: the transform of integers is exact, and the two roundings that remain are float32
multiplications. The format page is docs/trellis-format.md. Left out: encoding, which is the CPU's.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tq_kernels import trellis
from tq_kernels.tensor_rows import check_pair, decode_pair, dtype_name
from tq_kernels.trellis import TrellisTables

# Weights that plain torch decodes at a time; each takes some 30 bytes meanwhile.
_CHUNK_WEIGHTS = 1 << 23


def decode_tensor(
    codes: Tensor, meta: Tensor, columns: int, tables: TrellisTables, dtype: torch.dtype, *, threads: int = 1
) -> Tensor:
    """The matrix (rows, columns) of `dtype`, on the device of both.

    codes: uint8 (rows, columns * bits / 8); meta: int16 (rows, groups). Raises TypeError and ValueError where dtypes,
    shapes or devices do not fit.
    """
    name = dtype_name(dtype)
    if codes.dtype != torch.uint8:
        raise TypeError(f"codes must be uint8, not {codes.dtype}")
    check_pair(codes, meta, torch.int16)
    expected = (columns * tables.bits // 8, len(trellis.groups(columns)))
    if (codes.shape[1], meta.shape[1]) != expected:
        raise ValueError(f"{columns} columns take {expected} numbers a row, got {(codes.shape[1], meta.shape[1])}")
    weight = torch.empty(len(codes), columns, dtype=dtype, device=codes.device)
    if codes.device.type != "cpu":
        decode_in_torch(codes, meta, tables, weight)
        return weight

    def decode(some: NDArray[Any], numbers: NDArray[Any]) -> NDArray[Any]:
        return trellis.decode(some, numbers, columns, tables, dtype=name)

    decode_pair(weight, (codes, meta), decode, threads)
    return weight


def decode_in_torch(codes: Tensor, meta: Tensor, tables: TrellisTables, weight: Tensor) -> None:
    """Fill `weight`, (rows, columns), on any device."""
    columns = weight.shape[1]
    step = max(1, _CHUNK_WEIGHTS // max(1, columns))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        _decode_rows(codes[rows], meta[rows], tables, weight[rows])


def _decode_rows(codes: Tensor, meta: Tensor, tables: TrellisTables, weight: Tensor) -> None:
    """Runs of groups of one size lie side by side in a row: each run is decoded at once."""
    sizes = trellis.groups(weight.shape[1])
    column = 0
    for size in dict.fromkeys(sizes):
        first, count = sizes.index(size), sizes.count(size)
        end = column + size * count
        run = codes[:, column * tables.bits // 8 : end * tables.bits // 8].reshape(-1, size * tables.bits // 8)
        fields = meta[:, first : first + count].reshape(-1).to(torch.int32) & 0xFFFF
        values = _decode_groups(run, fields, size, tables)
        weight[:, column:end] = values.view(len(weight), -1).to(weight.dtype)
        column = end


def _decode_groups(codes: Tensor, fields: Tensor, size: int, tables: TrellisTables) -> Tensor:
    """(groups, bytes a group) and the 16 bits of each group -> float32 (groups, size)."""
    levels = torch.from_numpy(tables.codebook.astype(np.float32)).to(codes.device)
    values = levels[_windows(codes, fields, size, tables.bits)]
    scales = _scales(fields, tables.bits)
    if tables.signs is None:
        return values * scales[:, None]
    root = torch.tensor(1 / math.sqrt(size), dtype=torch.float32, device=codes.device)
    signs = torch.from_numpy(tables.signs[:size].copy()).to(codes.device)
    return signs * (_transformed(values) * (scales * root)[:, None])


def _windows(codes: Tensor, fields: Tensor, size: int, bits: int) -> Tensor:
    """int32 (groups, size): the eight bits that end with each weight's own, of the stream that begins with the field.

    Sixteen bits from the right byte on always hold them; the last window ends with the last byte.
    """
    front = torch.stack((fields & 255, fields >> 8), dim=1)
    stream = torch.cat((front, codes.to(torch.int32)), dim=1)
    words = stream | torch.nn.functional.pad(stream[:, 1:], (0, 1)) << 8
    positions = torch.arange(size, device=codes.device, dtype=torch.int32) * bits + 8 + bits
    return words.index_select(1, positions >> 3) >> (positions & 7) & 255


def _scales(fields: Tensor, bits: int) -> Tensor:
    """float32 (groups,): half-precision numbers without sign and lowest bits, times 2**-16; exact."""
    halves = ((fields & ((1 << (8 + bits)) - 1)) << (7 - bits)).to(torch.int16).view(torch.float16)
    return halves.to(torch.float32) * 2.0**-16


def _transformed(values: Tensor) -> Tensor:
    """Walsh-Hadamard transform of the rows in natural order; integers, so exact in float32."""
    size = values.shape[1]
    distance = 1
    while distance < size:
        pairs = values.view(len(values), -1, 2, distance)
        left, right = pairs[:, :, 0], pairs[:, :, 1]
        values = torch.stack((left + right, left - right), dim=2).view(-1, size)
        distance *= 2
    return values
