"""The native library: where it lies, how its functions are called. A library that is there but does not load raises."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tq_kernels.types import FloatDtype, NonFiniteWeight, Scale, TqTables

INTERFACE = 6
_INSTRUCTION_SETS = {"portable": 0, "avx2": 1, "avx512": 2, "neon": 3}
DTYPES: dict[FloatDtype, int] = {"BF16": 0, "F16": 1, "F32": 2}
_SCALES: dict[Scale, int] = {"norm": 0, "search": 1}
_OK, _NON_FINITE = 0, 1


class _Tables(ctypes.Structure):
    """struct TqTables of kernels/cpu/tq_cpu.h."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
        ("candidates", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("signs_in", ctypes.c_void_p),
        ("signs_out", ctypes.c_void_p),
        ("centroids", ctypes.c_void_p),
        ("boundaries", ctypes.c_void_p),
        ("search_boundaries", ctypes.c_void_p),
        ("search_centroids", ctypes.c_void_p),
    )

    @classmethod
    def of(cls, tables: TqTables) -> "_Tables":
        pointers = [array.ctypes.data for array in tables.arrays()]
        return cls(tables.bits, tables.group_size, len(tables.search_boundaries), 0, *pointers)


@dataclass(frozen=True)
class Library:
    """The loaded library and the instruction set to call it with; its functions take addresses of contiguous memory."""

    handle: ctypes.CDLL
    instruction_set: int = 0

    def has(self, name: str) -> bool:
        """Whether this machine and this build can run an instruction set."""
        return bool(self.handle.tq_has(_INSTRUCTION_SETS[name]))

    def using(self, name: str) -> "Library":
        """The same library with another instruction set."""
        return replace(self, instruction_set=_INSTRUCTION_SETS[name])

    def function(self, name: str, *argtypes: Any) -> Callable[..., int]:
        """A family's C function, which returns a TqStatus; give what it returns to `check`."""
        function = self.handle[name]
        function.argtypes, function.restype = argtypes, ctypes.c_int32
        found: Callable[..., int] = function
        return found

    def encode(
        self,
        weight: int,
        shape: tuple[int, int],
        dtype: FloatDtype,
        tables: TqTables,
        *,
        scale: Scale,
        codes: int,
        norms: int,
        threads: int,
    ) -> None:
        """Encode the matrix at address `weight` into the memory at `codes` and `norms`. Raises NonFiniteWeight."""
        row = ctypes.c_int64(-1)
        status = self.handle.tq_encode(
            ctypes.byref(_Tables.of(tables)),
            self.instruction_set,
            DTYPES[dtype],
            _SCALES[scale],
            weight,
            shape[0],
            shape[1],
            codes,
            norms,
            threads,
            ctypes.byref(row),
        )
        check(status, row.value)

    def decode(
        self,
        codes: int,
        norms: int,
        shape: tuple[int, int],
        dtype: FloatDtype,
        tables: TqTables,
        *,
        weight: int,
        threads: int,
    ) -> None:
        """Decode into the matrix of `shape` at address `weight`."""
        status = self.handle.tq_decode(
            ctypes.byref(_Tables.of(tables)),
            self.instruction_set,
            DTYPES[dtype],
            codes,
            norms,
            shape[0],
            shape[1],
            weight,
            threads,
        )
        check(status)

    def first_non_finite(self, array: NDArray[np.generic], dtype: FloatDtype) -> int:
        """Flat index of the first NaN or Inf, -1 where there is none."""
        found: int = self.handle.tq_first_non_finite(DTYPES[dtype], array.ctypes.data, array.size)
        return found


def check(status: int, row: int = -1) -> None:
    """Raise NonFiniteWeight of that row, or ValueError, for what a function returned."""
    if status == _NON_FINITE:
        raise NonFiniteWeight(row)
    if status != _OK:
        raise ValueError(f"the native kernels refused their arguments (status {status})")


@lru_cache(maxsize=1)
def load_library() -> Library | None:
    """The library beside this file, None where the installation has none. OSError if it is there but does not load."""
    found = sorted(Path(__file__).parent.glob("_cpu.*"))
    if not found:
        return None
    handle = ctypes.CDLL(str(found[0]))
    _declare(handle)
    if handle.tq_interface() != INTERFACE:
        raise OSError(f"`{found[0]}` belongs to another version of this package; rebuild it or delete it")
    return Library(handle)


def _declare(handle: ctypes.CDLL) -> None:
    pointer, small, large = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    handle.tq_interface.argtypes = ()
    handle.tq_interface.restype = small
    handle.tq_has.argtypes = (small,)
    handle.tq_has.restype = small
    handle.tq_encode.argtypes = (
        pointer, small, small, small, pointer, large, large, pointer, pointer, small, pointer,
    )  # fmt: skip
    handle.tq_encode.restype = small
    handle.tq_decode.argtypes = (pointer, small, small, pointer, pointer, large, large, pointer, small)
    handle.tq_decode.restype = small
    handle.tq_first_non_finite.argtypes = (small, pointer, large)
    handle.tq_first_non_finite.restype = large
