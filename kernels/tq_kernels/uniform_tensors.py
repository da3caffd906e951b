"""Decoding uniform weights that are torch tensors: the kernels on the CPU, plain torch on every other device.

Both give the same bits: each weight is one float32 multiplication, rounded once more to the wanted dtype. Left out:
encoding, which is the CPU's.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tq_kernels import uniform
from tq_kernels.tensor_rows import check_pair, decode_pair, dtype_name

# Weights that plain torch decodes at a time; each takes some 16 bytes meanwhile.
_CHUNK_WEIGHTS = 1 << 23


def decode_tensor(
    codes: Tensor,
    scales: Tensor,
    columns: int,
    bits: uniform.Bits,
    group_size: int,
    dtype: torch.dtype,
    *,
    threads: int = 1,
) -> Tensor:
    """The matrix (rows, columns) of `dtype`, on the device of both.

    codes: int8 (rows, columns) at 8 bits, uint8 (rows, ceil(columns / 2)) at 4; scales: float16 (rows, groups).
    Raises TypeError and ValueError where dtypes, shapes or devices do not fit.
    """
    name = dtype_name(dtype)
    wanted = torch.int8 if bits == 8 else torch.uint8
    if codes.dtype != wanted:
        raise TypeError(f"codes must be {wanted}, not {codes.dtype}")
    check_pair(codes, scales, torch.float16)
    expected = (uniform.row_bytes(columns, bits), uniform.groups(columns, group_size))
    if (codes.shape[1], scales.shape[1]) != expected:
        raise ValueError(f"{columns} columns take {expected} numbers a row, got {(codes.shape[1], scales.shape[1])}")
    weight = torch.empty(len(codes), columns, dtype=dtype, device=codes.device)
    if codes.device.type != "cpu":
        decode_in_torch(codes, scales, group_size, weight)
        return weight

    def decode(some: NDArray[Any], of_groups: NDArray[Any]) -> NDArray[Any]:
        return uniform.decode(some, of_groups, columns, bits, group_size, dtype=name)

    decode_pair(weight, (codes, scales), decode, threads)
    return weight


def decode_in_torch(codes: Tensor, scales: Tensor, group_size: int, weight: Tensor) -> None:
    """Fill `weight`, (rows, columns), on any device. Codes of 4 bits are those that are uint8."""
    columns = weight.shape[1]
    step = max(1, _CHUNK_WEIGHTS // max(1, columns))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        numbers = codes[rows] if codes.dtype == torch.int8 else _unpacked(codes[rows])[:, :columns]
        each = scales[rows].to(torch.float32).repeat_interleave(group_size, dim=1)[:, :columns]
        weight[rows] = (numbers.to(torch.float32) * each).to(weight.dtype)


def _unpacked(codes: Tensor) -> Tensor:
    """(rows, bytes) -> int32 (rows, 2 * bytes), -8 to 7, the low half of each byte first."""
    wide = codes.to(torch.int32)
    nibbles = torch.stack((wide & 15, wide >> 4), dim=-1).view(len(codes), -1)
    return (nibbles ^ 8) - 8
