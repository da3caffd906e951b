"""Head vectors of a key-value cache, packed and unpacked: the native kernels on CPUs, plain torch on other devices.

The rules are told in `kv_reference`; every backend gives the same bytes and, read back, the same bits (a NaN's payload
aside). Vectors may lie apart in memory, as those of a paged cache do. Left out: which vectors, levels and signs.
"""

import ctypes
import os
from typing import Any

import torch
from torch import Tensor

from tq_kernels import kv_reference
from tq_kernels.backends import selected
from tq_kernels.kv_reference import KvScale, KvTables, packed_rows
from tq_kernels.library import DTYPES, Library, check
from tq_kernels.tensor_rows import dtype_name

LARGEST_BLOCK = 1024

_NATIVE_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_SCALES: dict[KvScale, int] = {"length": 0, "least-squares": 1}
_AXES = 3
_POINTER, _SMALL, _LARGE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_ARGUMENTS = (_SMALL, _POINTER, _SMALL, _POINTER, _POINTER, _POINTER, _POINTER, _SMALL)


class _Codec(ctypes.Structure):
    """struct TqKvCodec of kernels/cpu/kv_interface.h."""

    _fields_ = (
        ("bits", _SMALL),
        ("block", _SMALL),
        ("blocks", _SMALL),
        ("scale", _SMALL),
        ("levels", _POINTER),
        ("boundaries", _POINTER),
        ("signs", _POINTER),
    )


class _Shape(ctypes.Structure):
    """struct TqKvShape of the same file."""

    _fields_ = (
        ("counts", _LARGE * _AXES),
        ("codes", _LARGE * _AXES),
        ("scales", _LARGE * _AXES),
        ("vectors", _LARGE * _AXES),
    )


def encode(vectors: Tensor, tables: KvTables) -> tuple[Tensor, Tensor]:
    """Codes, uint8 (..., bytes), and scales, float16 (..., blocks), of vectors (..., size) of any floating dtype.

    Raises ValueError for tables that make no sense, or a size that is no multiple of their block.
    """
    _check_tables(tables)
    size = vectors.shape[-1]
    if size < tables.block or size % tables.block:
        raise ValueError(f"vectors of {size} numbers are not cut into blocks of {tables.block}")
    library = _library(vectors, tables)
    if library is None:
        return kv_reference.encode(vectors, tables)
    floats = vectors.detach()
    source = _folded(floats if floats.dtype in _NATIVE_FLOATS else floats.float())
    leading, blocks = vectors.shape[:-1], size // tables.block
    codes = torch.empty(*leading, packed_rows(size, tables.bits), dtype=torch.uint8)
    scales = torch.empty(*leading, blocks, dtype=torch.float16)
    shape = _Shape(counts=_three(source.shape), vectors=_three(source.stride()))
    run = library.function("tq_kv_encode", *_ARGUMENTS)
    status = run(
        library.instruction_set, _reference(_codec(tables, blocks)), DTYPES[dtype_name(source.dtype)],
        _reference(shape), source.data_ptr(), codes.data_ptr(), scales.data_ptr(), _threads(),
    )  # fmt: skip
    check(status)
    return codes, scales


def decode(codes: Tensor, scales: Tensor, tables: KvTables, dtype: torch.dtype) -> Tensor:
    """The vectors (..., blocks * block) of `dtype`, contiguous, that codes and scales of `encode` stand for.

    Raises ValueError where shapes, dtypes or devices do not fit.
    """
    _check_tables(tables)
    _check_stored(codes, scales, tables)
    library = _library(codes, tables)
    if library is None:
        return kv_reference.decode(codes, scales, tables, dtype)
    blocks = scales.shape[-1]
    found = dtype if dtype in _NATIVE_FLOATS else torch.float32
    vectors = torch.empty(*scales.shape[:-1], blocks * tables.block, dtype=found)
    codes, scales = _folded(codes), _folded(scales)
    halves = [2 * stride for stride in _three(scales.stride())]
    shape = _Shape(counts=_three(scales.shape), codes=_three(codes.stride()), scales=tuple(halves))
    run = library.function("tq_kv_decode", *_ARGUMENTS)
    status = run(
        library.instruction_set, _reference(_codec(tables, blocks)), DTYPES[dtype_name(found)],
        _reference(shape), codes.data_ptr(), scales.data_ptr(), vectors.data_ptr(), _threads(),
    )  # fmt: skip
    check(status)
    return vectors.to(dtype)


def _library(tensor: Tensor, tables: KvTables) -> Library | None:
    """None where torch has to do it: on other devices, without native kernels, for blocks that they do not take."""
    if tensor.device.type != "cpu" or tables.block > LARGEST_BLOCK:
        return None
    return selected()[1]


def _codec(tables: KvTables, blocks: int) -> _Codec:
    arrays = (tables.levels, tables.boundaries, tables.signs)
    return _Codec(tables.bits, tables.block, blocks, _SCALES[tables.scale], *(one.ctypes.data for one in arrays))


def _folded(tensor: Tensor) -> Tensor:
    """(a, b, c, numbers), the numbers of a vector side by side: a view where there is one."""
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    missing = _AXES + 1 - tensor.ndim
    if missing >= 0:
        return tensor[(None,) * missing]
    return tensor.flatten(0, -missing)


def _three(numbers: Any) -> tuple[int, ...]:
    return tuple(numbers[:_AXES])


def _reference(structure: ctypes.Structure) -> Any:
    return ctypes.byref(structure)


def _threads() -> int:
    """As many as torch uses, but no more than the calling thread has processors to share with those it starts."""
    share = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), share))


def _check_tables(tables: KvTables) -> None:
    block = tables.block
    if not 2 <= tables.bits <= 8 or block < 16 or block & (block - 1):
        raise ValueError(f"no codec has {tables.bits} bits and blocks of {block}")
    wanted = {"levels": 2**tables.bits, "boundaries": 2**tables.bits - 1, "signs": block}
    for name, count in wanted.items():
        array = getattr(tables, name)
        if array.shape != (count,) or array.dtype != "float32" or not array.flags.c_contiguous:
            raise ValueError(f"{name} must be {count} numbers of float32, side by side")
    if tables.scale not in _SCALES:
        raise ValueError(f"scale must be one of {', '.join(_SCALES)}, not {tables.scale}")


def _check_stored(codes: Tensor, scales: Tensor, tables: KvTables) -> None:
    if codes.dtype != torch.uint8 or scales.dtype != torch.float16:
        raise ValueError(f"codes must be uint8 and scales float16, not {codes.dtype} and {scales.dtype}")
    if codes.device != scales.device:
        raise ValueError(f"codes are on {codes.device}, scales on {scales.device}")
    expected = (*scales.shape[:-1], packed_rows(scales.shape[-1] * tables.block, tables.bits))
    if not scales.shape[-1] or tuple(codes.shape) != expected:
        raise ValueError(f"scales {tuple(scales.shape)} need codes {expected}, got {tuple(codes.shape)}")
