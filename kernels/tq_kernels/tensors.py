"""The codec on torch tensors, chosen by device: native code for CPU tensors, the torch reference for all others."""

import math

import torch
from torch import Tensor

from tq_kernels import reference
from tq_kernels.arrays import check_stored_shapes
from tq_kernels.backends import selected
from tq_kernels.tensor_rows import dtype_name
from tq_kernels.types import Scale, TqTables


def encode_tensor(weight: Tensor, tables: TqTables, *, scale: Scale, threads: int = 1) -> tuple[Tensor, Tensor]:
    """Codes and norms of a tensor (..., columns) of bfloat16, float16 or float32, contiguous, on its device.

    Returns uint8 (product of the leading sizes * groups, bytes per group) and float32 (product of the leading sizes,
    groups). CPU tensors are read in place by the native library. Raises NonFiniteWeight, ValueError, TypeError.
    """
    dtype_name(weight.dtype)
    if scale not in ("norm", "search"):
        raise ValueError(f"scale must be norm or search, not {scale}")
    if threads < 1:
        raise ValueError(f"threads must be positive, not {threads}")
    if weight.ndim < 1 or weight.shape[-1] < 1:
        raise ValueError(f"expected (..., columns) with at least one column, got shape {tuple(weight.shape)}")
    if not weight.is_contiguous():
        raise ValueError("the tensor must be contiguous")
    matrix = weight.detach().view(math.prod(weight.shape[:-1]), weight.shape[-1])
    library = selected()[1] if matrix.device.type == "cpu" else None
    if library is None:
        return reference.encode(matrix, tables, scale=scale)
    rows, columns = matrix.shape
    codes = torch.empty(rows * tables.groups(columns), tables.bytes_per_group, dtype=torch.uint8)
    norms = torch.empty(rows, tables.groups(columns), dtype=torch.float32)
    library.encode(
        matrix.data_ptr(),
        (rows, columns),
        dtype_name(matrix.dtype),
        tables,
        scale=scale,
        codes=codes.data_ptr(),
        norms=norms.data_ptr(),
        threads=threads,
    )
    return codes, norms


def decode_tensor(
    codes: Tensor, norms: Tensor, columns: int, tables: TqTables, dtype: torch.dtype, *, threads: int = 1
) -> Tensor:
    """The matrix (rows, columns) of `dtype` on the device of codes and norms; shapes as for `tq_kernels.decode`."""
    name = dtype_name(dtype)
    if codes.dtype != torch.uint8 or norms.dtype != torch.float32:
        raise TypeError(f"codes must be uint8 and norms float32, not {codes.dtype} and {norms.dtype}")
    if codes.device != norms.device:
        raise ValueError(f"codes are on {codes.device}, norms on {norms.device}")
    check_stored_shapes(tuple(codes.shape), tuple(norms.shape), columns, tables)
    if not (codes.is_contiguous() and norms.is_contiguous()):
        raise ValueError("codes and norms must be contiguous")
    if threads < 1:
        raise ValueError(f"threads must be positive, not {threads}")
    library = selected()[1] if codes.device.type == "cpu" else None
    if library is None:
        return reference.decode(codes, norms, columns, tables, dtype)
    weight = torch.empty(len(norms), columns, dtype=dtype)
    library.decode(
        codes.data_ptr(),
        norms.data_ptr(),
        (len(norms), columns),
        name,
        tables,
        weight=weight.data_ptr(),
        threads=threads,
    )
    return weight
