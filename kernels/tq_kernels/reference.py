"""The codec in plain torch: the definition that every other backend equals bit for bit, and the one for any device.

Exactness rests on five rules, here and in the native code alike: every multiplication, addition, division and square
root rounds once (nothing fused); sums of squares run over eight lanes, then over the lanes in order; the butterflies
run h = 1, 2, 4, ...; the scale search sums integers; denormals are kept. Square roots go through float64 because
torch's float32 root is not correctly rounded on every device, and divisors are tensors because torch multiplies by the
reciprocal of a Python number on some devices.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tq_kernels.types import SEARCH_UNITS, NonFiniteWeight, Scale, TqTables

_LANES = 8
# Shorter groups but zero ones lose digits to denormals in their sum of squares; they are encoded as by scale "norm".
_SHORTEST_SEARCHED = 2.0**-60
_CHUNK_WEIGHTS = 1 << 21


def encode(weight: Tensor, tables: TqTables, *, scale: Scale) -> tuple[Tensor, Tensor]:
    """Codes and norms of a matrix, on the matrix's device.

    weight: (rows, columns), any floating dtype. Returns uint8 (rows * groups, bytes per group) and float32
    (rows, groups). Raises NonFiniteWeight.
    """
    rows, columns = weight.shape
    groups = tables.groups(columns)
    constants = _Constants.of(tables, weight.device)
    codes = torch.empty(rows * groups, tables.bytes_per_group, dtype=torch.uint8, device=weight.device)
    norms = torch.empty(rows, groups, dtype=torch.float32, device=weight.device)
    step = max(1, _CHUNK_WEIGHTS // (groups * tables.group_size))
    for start in range(0, rows, step):
        part = weight[start : start + step].float()
        part = torch.nn.functional.pad(part, (0, groups * tables.group_size - columns))
        vectors = part.reshape(-1, tables.group_size)
        lengths = _norm(vectors)
        _check_finite(lengths, start, groups)
        index, norm = _quantise(vectors, lengths, constants, tables, scale)
        codes[start * groups : start * groups + len(vectors)] = _pack(index, tables.bits)
        norms[start : start + step] = norm.reshape(-1, groups)
    return codes, norms


def decode(codes: Tensor, norms: Tensor, columns: int, tables: TqTables, dtype: torch.dtype) -> Tensor:
    """The matrix (rows, columns) that codes (rows * groups, bytes per group) and norms (rows, groups) stand for."""
    rows, groups = norms.shape
    constants = _Constants.of(tables, codes.device)
    codes = codes.reshape(rows, groups * tables.bytes_per_group)
    weight = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    step = max(1, _CHUNK_WEIGHTS // max(1, groups * tables.group_size))
    for start in range(0, rows, step):
        part = codes[start : start + step].reshape(-1, tables.bytes_per_group)
        values = _reconstruct(_unpack(part, tables), constants)
        values = values * norms[start : start + step].reshape(-1, 1)
        weight[start : start + step] = values.reshape(-1, groups * tables.group_size)[:, :columns].to(dtype)
    return weight


class _Constants(NamedTuple):
    """The tables on one device; `root` is the square root of the group size as a tensor of one number."""

    signs_in: Tensor
    signs_out: Tensor
    centroids: Tensor
    boundaries: Tensor
    search_boundaries: Tensor
    search_centroids: Tensor
    root: Tensor

    @classmethod
    def of(cls, tables: TqTables, device: torch.device) -> "_Constants":
        root = torch.tensor([math.sqrt(tables.group_size)], dtype=torch.float32)
        arrays = [torch.from_numpy(array.copy()) for array in tables.arrays()]
        return cls._make(array.to(device) for array in (*arrays, root))


def _check_finite(lengths: Tensor, first_row: int, groups: int) -> None:
    broken = torch.nonzero(~torch.isfinite(lengths))
    if len(broken):
        raise NonFiniteWeight(first_row + int(broken[0]) // groups)


def _norm(vectors: Tensor) -> Tensor:
    """Euclidean lengths of the rows in the fixed order: eight lanes down the row, then the lanes one by one."""
    squares = vectors * vectors
    lanes = squares.view(len(vectors), -1, _LANES)
    sums = lanes[:, 0]
    for step in range(1, lanes.shape[1]):
        sums = sums + lanes[:, step]
    total = sums[:, 0]
    for lane in range(1, _LANES):
        total = total + sums[:, lane]
    return total.double().sqrt().float()


def _hadamard(vectors: Tensor) -> Tensor:
    """Walsh-Hadamard transform of the rows in natural order, without the division by the root of their length."""
    width = vectors.shape[1]
    distance = 1
    while distance < width:
        pairs = vectors.view(len(vectors), -1, 2, distance)
        left, right = pairs[:, :, 0], pairs[:, :, 1]
        vectors = torch.stack((left + right, left - right), dim=2).view(-1, width)
        distance *= 2
    return vectors


def _quantise(
    vectors: Tensor, lengths: Tensor, constants: _Constants, tables: TqTables, scale: Scale
) -> tuple[Tensor, Tensor]:
    divisors = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    rotated = _hadamard(vectors / divisors[:, None] * constants.signs_in) * constants.signs_out
    if scale == "norm":
        return _nearest(rotated, lengths, constants)
    index, norms = _search(rotated, lengths, constants, tables)
    faint = (lengths > 0) & (lengths < _SHORTEST_SEARCHED)
    if not faint.any():
        return index, norms
    plain_index, plain_norms = _nearest(rotated, lengths, constants)
    return torch.where(faint[:, None], plain_index, index), torch.where(faint, plain_norms, norms)


def _nearest(rotated: Tensor, lengths: Tensor, constants: _Constants) -> tuple[Tensor, Tensor]:
    """The nearest level of each number, and the norm that keeps the group's length."""
    index = torch.searchsorted(constants.boundaries, (rotated / constants.root).contiguous())
    return index, lengths / _norm(_reconstruct(index, constants))


def _reconstruct(index: Tensor, constants: _Constants) -> Tensor:
    values = constants.centroids[index] * constants.signs_out
    return _hadamard(values) / constants.root * constants.signs_in


def _search(rotated: Tensor, lengths: Tensor, constants: _Constants, tables: TqTables) -> tuple[Tensor, Tensor]:
    """The candidate grid with the largest projection on the group, and its least-squares scale."""
    units = torch.round(rotated * SEARCH_UNITS).to(torch.int32)
    magnitude = units.abs()
    best = torch.full_like(lengths, -1.0, dtype=torch.float64)
    best_level = torch.zeros_like(magnitude, dtype=torch.int64)
    best_factor = torch.zeros_like(best)
    levels = constants.search_centroids.to(torch.int64)
    for candidate in constants.search_boundaries.to(torch.int32):
        level = torch.bucketize(magnitude, candidate)
        chosen = levels[level]
        projection = (magnitude * chosen).sum(1).double()
        energy = (chosen * chosen).sum(1).double()
        quality = projection * projection / energy
        better = quality > best
        best = torch.where(better, quality, best)
        best_factor = torch.where(better, projection / energy, best_factor)
        best_level = torch.where(better[:, None], level, best_level)
    half = 1 << (tables.bits - 1)
    index = torch.where(units > 0, half + best_level, half - 1 - best_level)
    return index, (lengths.double() * best_factor).float()


def _pack(index: Tensor, bits: int) -> Tensor:
    """Rows of indices as rows of bytes: one little-endian bit stream, `bits` bits an index."""
    eights = index.view(len(index), -1, 8)
    shifts = torch.arange(0, 8 * bits, bits, device=index.device)
    words = (eights << shifts).sum(2)
    positions = torch.arange(0, 8 * bits, 8, device=index.device)
    return ((words[:, :, None] >> positions) & 255).to(torch.uint8).reshape(len(index), -1)


def _unpack(codes: Tensor, tables: TqTables) -> Tensor:
    parts = codes.view(len(codes), -1, tables.bits).to(torch.int64)
    positions = torch.arange(0, 8 * tables.bits, 8, device=codes.device)
    words = (parts << positions).sum(2)
    shifts = torch.arange(0, 8 * tables.bits, tables.bits, device=codes.device)
    return ((words[:, :, None] >> shifts) & ((1 << tables.bits) - 1)).reshape(len(codes), -1)
