"""Which implementation of the codec runs on this machine, and why that one."""

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tq_kernels.library import Library, load_library

BackendName = Literal["cpu-avx512", "cpu-avx2", "cpu-neon", "cpu-portable", "reference"]

VARIABLE = "TQ_KERNELS"
_NATIVE: dict[str, BackendName] = {
    "avx512": "cpu-avx512",
    "avx2": "cpu-avx2",
    "neon": "cpu-neon",
    "portable": "cpu-portable",
}
# Decoding on AVX2 is at the lower end, encoding with a searched scale on AVX-512 at the upper: docs/measurements.md.
_SLOWER = "20 to 250 times slower"
_NO_LIBRARY = (
    f"no compiled kernels in this installation: encoding and decoding run in torch, {_SLOWER}; "
    "install a C++17 compiler (g++ or clang++) and reinstall the package"
)


class KernelsUnavailable(RuntimeError):
    """TQ_KERNELS asks for something that this machine or this installation does not have."""


@dataclass(frozen=True)
class Backend:
    """The implementation in use. `reason` is one line for a person: why this one, and what would make it faster."""

    name: BackendName
    reason: str


def backend() -> Backend:
    """The backend in use: the fastest that works here, or the one that the environment variable TQ_KERNELS names."""
    return selected()[0]


def selected() -> tuple[Backend, Library | None]:
    """The backend in use and its library, None for the torch reference."""
    return _select(os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=8)
def _select(wanted: str) -> tuple[Backend, Library | None]:
    if wanted and wanted != "reference" and wanted not in _NATIVE:
        choices = ", ".join(["reference", *_NATIVE])
        raise KernelsUnavailable(f"`{VARIABLE}={wanted}` is not known; choose one of {choices}")
    if wanted == "reference":
        return Backend("reference", f"`{VARIABLE}=reference` asks for it; {_SLOWER}"), None
    library = load_library()
    if library is None:
        if wanted:
            raise KernelsUnavailable(f"`{VARIABLE}={wanted}` cannot be had: {_NO_LIBRARY}")
        return Backend("reference", _NO_LIBRARY), None
    if not wanted:
        return _fastest(library)
    if not library.has(wanted):
        raise KernelsUnavailable(
            f"`{VARIABLE}={wanted}` cannot run on this {platform.machine()} processor; "
            f"it has {', '.join(name for name in _NATIVE if library.has(name))}"
        )
    return Backend(_NATIVE[wanted], f"`{VARIABLE}={wanted}` asks for it"), library.using(wanted)


def _fastest(library: Library) -> tuple[Backend, Library]:
    name = next(name for name in _NATIVE if library.has(name))
    if name == "portable":
        reason = f"this {platform.machine()} processor has none of AVX2, AVX-512 and NEON: several times slower"
    else:
        reason = "the fastest that this processor runs"
    return Backend(_NATIVE[name], reason), library.using(name)
