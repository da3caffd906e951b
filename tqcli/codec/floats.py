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
