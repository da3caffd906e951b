"""Decoders for the older layouts of HLWQ weights: the same blocks, norms and rotation, the indices packed otherwise.

Each takes the indices as they are stored, the norms, float16 (rows, blocks), and a table of levels, and gives float32
(rows, columns). The variants are told apart by the names of their tensors, which is a reader's business. All of them
become one byte an index and go through the same kernel as the format itself.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tq_kernels import hlwq

Packing = Literal["highest-first", "lowest-first", "half-blocks", "bytes"]

_ROOT = math.sqrt(hlwq.BLOCK)
_META_LENGTHS = (4, 5)


def packing_of(nbytes: int, count: int, bits: int) -> Packing:
    """How `.codes` or `__codes` of `nbytes` bytes hold `count` indices: the size tells. ValueError if it fits nothing.

    A `__packed` tensor is always "highest-first".
    """
    if nbytes == count:
        return "bytes"
    if bits <= 4 and nbytes * 2 == count:
        return "half-blocks"
    if bits == 5 and nbytes * 8 == count * 5:
        return "lowest-first"
    raise ValueError(f"{nbytes} bytes are no {count} indices of {bits} bits")


def decode_polar_engine(
    codes: NDArray[Any], norms: NDArray[np.float16], scaled: NDArray[np.float32], columns: int
) -> NDArray[np.float32]:
    """`.codes` of polar_engine_v4 and polar_engine_v5, whose widths differ from weight to weight.

    Up to 4 bits there are two indices in a byte; v5 packs those of 5 bits; all others, or all by an option, are whole
    bytes. codes: uint8 or int8 of any shape; scaled: `.ct_scaled`, float32 (2**bits,), the levels / sqrt(128).
    Raises ValueError where sizes do not fit or an index has no level.
    """
    packing = packing_of(codes.size, norms.size * hlwq.BLOCK, len(scaled).bit_length() - 1)
    return decode_codes(codes, packing, norms, unscaled(scaled), columns)


def decode_unpacked(
    codes: NDArray[Any], norms: NDArray[np.float16], levels: NDArray[np.float32], columns: int
) -> NDArray[np.float32]:
    """`.codes` of the first v5 uploads, with levels from `.ct`, and `__codes`, which have none: a byte an index.

    Raises ValueError where sizes do not fit or an index has no level.
    """
    return decode_codes(codes, "bytes", norms, levels, columns)


def decode_multi(
    packed: NDArray[np.uint8],
    norms: NDArray[np.float16],
    meta: NDArray[np.int64],
    levels: NDArray[np.float32],
    columns: int | None = None,
) -> NDArray[np.float32]:
    """`__packed` of PQ-Multi and HLWQ files: highest bit first, any width; `__meta` has 4 or 5 numbers.

    columns: of the weight, from the base model, where meta has only 4; else padding is left on.
    Raises ValueError where meta, sizes and columns contradict each other.
    """
    rows, _, width = meta_sizes(meta, norms.shape)
    if columns is not None and len(meta) == max(_META_LENGTHS) and columns != width:
        raise ValueError(f"the base model has {columns} columns, the file {width}")
    decoded = hlwq.decode(packed, norms, width if columns is None else columns, levels)
    if len(decoded) != rows:
        raise ValueError(f"meta says {rows} rows, norms have {len(decoded)}")
    return decoded


def meta_sizes(meta: NDArray[np.int64], norms: tuple[int, ...]) -> tuple[int, int, int]:
    """(rows, blocks in a row, columns) of a `__meta` tensor; with 4 numbers, columns include the padding.

    norms: the shape of `__norms`, which must agree. Raises ValueError where the numbers contradict each other.
    """
    if meta.ndim != 1 or len(meta) not in _META_LENGTHS:
        raise ValueError(f"meta must have {_META_LENGTHS[0]} or {_META_LENGTHS[1]} numbers, not shape {meta.shape}")
    rows, count, block, total = (int(number) for number in meta[:4])
    columns = int(meta[4]) if len(meta) > 4 else count * hlwq.BLOCK
    if block != hlwq.BLOCK:
        raise ValueError(f"blocks of {block} are not known, only of {hlwq.BLOCK}")
    if norms != (rows, count) or total != rows * count * block or columns < 1 or hlwq.blocks(columns) != count:
        raise ValueError(f"meta {meta.tolist()} does not go with norms of shape {norms}")
    return rows, count, columns


def decode_codes(
    codes: NDArray[Any], packing: Packing, norms: NDArray[np.float16], levels: NDArray[np.float32], columns: int
) -> NDArray[np.float32]:
    """Indices however they are packed -> float32 (rows, columns).

    codes: uint8 or int8 of any shape; levels: float32 (2**bits,), in standard deviations.
    Raises ValueError where sizes do not fit or an index has no level.
    """
    codes, norms = np.ascontiguousarray(codes).view(np.uint8), np.ascontiguousarray(norms)
    if packing == "highest-first":
        return hlwq.decode(codes, norms, columns, levels)
    if packing == "half-blocks":
        codes = half_blocks(codes)
    elif packing == "lowest-first":
        codes = lowest_first(codes, len(levels).bit_length() - 1)
    if codes.size and int(codes.max()) >= len(levels):
        raise ValueError(f"index {int(codes.max())} has no level: the table has {len(levels)}")
    every = np.zeros(256, dtype=np.float32)
    every[: len(levels)] = levels
    return hlwq.decode(codes, norms, columns, every)


def unscaled(scaled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Levels that were stored divided by sqrt(128), in standard deviations again, to within half a unit of float32."""
    return (scaled.astype(np.float64) * _ROOT).astype(np.float32)


def half_blocks(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Bytes of two indices, i in the low half and i + 64 in the high one -> uint8 (blocks, 128)."""
    half = hlwq.BLOCK // 2
    if codes.size % half:
        raise ValueError(f"{codes.size} bytes are no whole number of blocks of {half}")
    pairs = np.ascontiguousarray(codes).view(np.uint8).reshape(-1, half)
    return np.concatenate([pairs & 15, pairs >> 4], axis=1)


def lowest_first(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """A stream of indices with the first in the lowest bits of the first byte -> uint8, flat."""
    as_bytes = np.ascontiguousarray(codes).view(np.uint8).reshape(-1)
    stream = np.unpackbits(as_bytes, bitorder="little").reshape(-1, bits)
    return np.packbits(stream, axis=1, bitorder="little")[:, 0]
