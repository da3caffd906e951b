"""Float tensors as NumPy arrays, without torch: BF16 travels as uint16, because NumPy has no such type."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from tq_kernels.types import FloatDtype

_DTYPES: Mapping[FloatDtype, np.dtype[Any]] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}


def is_float_dtype(dtype: str) -> TypeGuard[FloatDtype]:
    """Whether a safetensors dtype is one that is computed with."""
    return dtype in _DTYPES


_ARRAYS: Mapping[str, np.dtype[Any]] = {
    **{str(dtype): kind for dtype, kind in _DTYPES.items()},
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "I8": np.dtype(np.int8),
}


def as_array(raw: bytes, dtype: str) -> NDArray[Any]:
    """The flat array that formats decode: floats as below, integers as such, every 8-bit float as uint8. No copy."""
    array: NDArray[Any] = np.frombuffer(raw, np.uint8).view(_ARRAYS.get(dtype, np.dtype(np.uint8)))
    return array


def as_elements(data: bytes | memoryview | NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Raw bytes -> flat array of BF16 (as uint16), F16 or F32 elements; any other dtype stays bytes. No copy."""
    raw = np.frombuffer(data, np.uint8)
    elements: NDArray[Any] = raw.view(_DTYPES[dtype]) if is_float_dtype(dtype) else raw
    return elements


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
            return values.astype(_DTYPES[dtype], copy=False)
    bits = values.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
