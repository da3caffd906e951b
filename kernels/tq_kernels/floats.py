"""Weights as NumPy arrays: BF16 travels as uint16, because NumPy has no such type. What every family of kernels shares.

Left out: layouts that one family alone has, whose module checks them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq_kernels.types import FloatDtype

NUMPY: Mapping[FloatDtype, np.dtype[Any]] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}


def widen(values: NDArray[Any], dtype: FloatDtype) -> NDArray[np.float32]:
    """BF16 (as uint16), F16 or F32 -> float32, exactly."""
    if dtype == "BF16":
        shifted = values.astype(np.uint32) << np.uint32(16)
        return shifted.view(np.float32)
    return values.astype(np.float32, copy=False)


def narrow(values: NDArray[np.float32], dtype: FloatDtype) -> NDArray[Any]:
    """float32 -> BF16 (as uint16), F16 or F32, rounded to nearest even. Values must be finite."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(NUMPY[dtype], copy=False)
    bits = values.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)


def rounded(values: NDArray[np.float32], dtype: FloatDtype) -> NDArray[np.float32]:
    """What float32 values become once they are stored in a dtype."""
    return widen(narrow(values, dtype), dtype)


def dtype_of(scales: NDArray[Any]) -> FloatDtype:
    """The dtype that scales are in. ValueError where they are no floats of ours."""
    for dtype, kind in NUMPY.items():
        if scales.dtype == kind:
            return dtype
    raise ValueError(f"scales must be uint16, float16 or float32, not {scales.dtype}")


def check_matrix(weight: NDArray[Any], dtype: FloatDtype, multiple: int = 1) -> None:
    """ValueError unless the weight is a C-contiguous matrix of that dtype, and its columns a multiple, not 0."""
    if weight.ndim != 2 or weight.shape[1] < 1 or weight.shape[1] % multiple:
        columns = "at least one column" if multiple == 1 else f"a multiple of {multiple} columns"
        raise ValueError(f"expected a matrix with {columns}, got shape {weight.shape}")
    check_elements(weight, dtype)


def check_elements(array: NDArray[Any], dtype: FloatDtype) -> None:
    """ValueError unless the array, of any shape, is C-contiguous and of that dtype."""
    if dtype not in NUMPY:
        raise ValueError(f"dtype must be one of {', '.join(NUMPY)}, not {dtype}")
    if array.dtype != NUMPY[dtype]:
        raise ValueError(f"{dtype} weights must come as {NUMPY[dtype]}, not {array.dtype}")
    if not array.flags.c_contiguous:
        raise ValueError("the array must be C-contiguous")
