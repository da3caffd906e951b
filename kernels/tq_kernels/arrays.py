"""The codec on NumPy arrays, as the converter carries them. BF16 travels as uint16."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tq_kernels.backends import selected
from tq_kernels.floats import NUMPY, check_elements, check_matrix
from tq_kernels.types import FloatDtype, Scale, TqTables

if TYPE_CHECKING:
    import torch

_BF16_EXPONENT = 0x7F80  # all set in NaN and Inf


def encode(
    weight: NDArray[Any], dtype: FloatDtype, tables: TqTables, *, scale: Scale, threads: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes and norms of a matrix.

    weight: (rows, columns), C-contiguous; uint16 for BF16, float16 for F16, float32 for F32. The last group of each
    row is padded with zeros. scale: "norm" for the bytes of the published encoder, "search" for less error.
    Returns uint8 (rows * groups, bytes per group) and float32 (rows, groups); the same for any number of threads.
    Raises NonFiniteWeight, and ValueError on a wrong shape, type or memory layout.
    """
    check_matrix(weight, dtype)
    _check_choices(scale, threads)
    rows, columns = weight.shape
    _, library = selected()
    if library is None:
        return _reference_encode(weight, dtype, tables, scale)
    codes = np.empty((rows * tables.groups(columns), tables.bytes_per_group), dtype=np.uint8)
    norms = np.empty((rows, tables.groups(columns)), dtype=np.float32)
    library.encode(
        weight.ctypes.data,
        (rows, columns),
        dtype,
        tables,
        scale=scale,
        codes=codes.ctypes.data,
        norms=norms.ctypes.data,
        threads=threads,
    )
    return codes, norms


def decode(
    codes: NDArray[np.uint8],
    norms: NDArray[np.float32],
    columns: int,
    tables: TqTables,
    *,
    dtype: FloatDtype = "F32",
    threads: int = 1,
) -> NDArray[Any]:
    """The matrix (rows, columns) that codes and norms stand for, in `dtype` (BF16 as uint16), rounded to nearest even.

    codes: uint8 (rows * groups, bytes per group) or (rows, groups * bytes per group); norms: float32 (rows, groups).
    Raises ValueError where the shapes, types or memory layouts do not fit.
    """
    _check_stored(codes, norms, columns, tables)
    _check_choices("norm", threads)
    if dtype not in NUMPY:
        raise ValueError(f"dtype must be one of {', '.join(NUMPY)}, not {dtype}")
    _, library = selected()
    if library is None:
        return _reference_decode(codes, norms, columns, tables, dtype)
    weight = np.empty((len(norms), columns), dtype=NUMPY[dtype])
    library.decode(
        codes.ctypes.data,
        norms.ctypes.data,
        weight.shape,
        dtype,
        tables,
        weight=weight.ctypes.data,
        threads=threads,
    )
    return weight


def first_non_finite(array: NDArray[Any], dtype: FloatDtype) -> int | None:
    """Flat index of the first NaN or Inf of a C-contiguous array of any shape, None where all is finite."""
    check_elements(array, dtype)
    _, library = selected()
    if library is not None:
        found = library.first_non_finite(array, dtype)
        return found if found >= 0 else None
    flat = array.reshape(-1)
    broken = (flat & _BF16_EXPONENT) == _BF16_EXPONENT if dtype == "BF16" else ~np.isfinite(flat)
    return int(np.argmax(broken)) if broken.any() else None


def _check_choices(scale: Scale, threads: int) -> None:
    if scale not in ("norm", "search"):
        raise ValueError(f"scale must be norm or search, not {scale}")
    if threads < 1:
        raise ValueError(f"threads must be positive, not {threads}")


def _check_stored(codes: NDArray[np.uint8], norms: NDArray[np.float32], columns: int, tables: TqTables) -> None:
    if codes.dtype != np.uint8 or norms.dtype != np.float32:
        raise ValueError(f"codes must be uint8 and norms float32, not {codes.dtype} and {norms.dtype}")
    check_stored_shapes(codes.shape, norms.shape, columns, tables)
    if not (codes.flags.c_contiguous and norms.flags.c_contiguous):
        raise ValueError("codes and norms must be C-contiguous")


def check_stored_shapes(codes: tuple[int, ...], norms: tuple[int, ...], columns: int, tables: TqTables) -> None:
    """ValueError unless codes and norms of these shapes hold a matrix with this many columns."""
    if columns < 1:
        raise ValueError(f"columns must be positive, not {columns}")
    groups = tables.groups(columns)
    if len(norms) != 2 or norms[1] != groups:
        raise ValueError(f"{columns} columns need norms of shape (rows, {groups}), got {norms}")
    rows, width = norms[0], tables.bytes_per_group
    if codes not in ((rows * groups, width), (rows, groups * width)):
        raise ValueError(f"norms of shape {norms} need codes of shape {(rows * groups, width)}, got {codes}")


def _reference_encode(
    weight: NDArray[Any], dtype: FloatDtype, tables: TqTables, scale: Scale
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    from tq_kernels import reference

    tensor = _tensor(weight)
    codes, norms = reference.encode(tensor.view(_torch_dtype(dtype)), tables, scale=scale)
    return codes.numpy(), norms.numpy()


def _reference_decode(
    codes: NDArray[np.uint8], norms: NDArray[np.float32], columns: int, tables: TqTables, dtype: FloatDtype
) -> NDArray[Any]:
    import torch

    from tq_kernels import reference

    weight = reference.decode(_tensor(codes), _tensor(norms), columns, tables, _torch_dtype(dtype))
    result: NDArray[Any] = (weight.view(torch.uint16) if dtype == "BF16" else weight).numpy()
    return result


def _torch_dtype(dtype: FloatDtype) -> "torch.dtype":
    import torch

    return {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]


def _tensor(array: NDArray[Any]) -> "torch.Tensor":
    """The array as a tensor; torch takes no read-only memory, such as a mapped file's, so that is copied."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())
