"""The bytes of tensors as NumPy arrays, without torch: BF16 travels as uint16, because NumPy has no such type.

Left out: the arithmetic between dtypes, which the kernels' package has (`tq_kernels.floats`).
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from tq_kernels.floats import NUMPY
from tq_kernels.types import FloatDtype

_ARRAYS: Mapping[str, np.dtype[Any]] = {
    **{str(dtype): kind for dtype, kind in NUMPY.items()},
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype(np.int8),
}


def is_float_dtype(dtype: str) -> TypeGuard[FloatDtype]:
    """Whether a safetensors dtype is one that is computed with."""
    return dtype in NUMPY


def as_array(raw: bytes, dtype: str) -> NDArray[Any]:
    """The flat array that formats decode: floats as below, integers as such, every 8-bit float as uint8. No copy."""
    array: NDArray[Any] = np.frombuffer(raw, np.uint8).view(_ARRAYS.get(dtype, np.dtype(np.uint8)))
    return array


def as_elements(data: bytes | memoryview | NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Raw bytes -> flat array of BF16 (as uint16), F16 or F32 elements; any other dtype stays bytes. No copy."""
    raw = np.frombuffer(data, np.uint8)
    elements: NDArray[Any] = raw.view(NUMPY[dtype]) if is_float_dtype(dtype) else raw
    return elements
