"""Compiles the native kernels into one shared library; `python kernels/cpu/build_library.py` rebuilds it in place.

Each instruction set is its own translation unit with its own flags; the library picks one when it runs, so that one
wheel serves every processor of a platform. No fused multiply-adds but those written out: they would change bits.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARY = SOURCES.parent / "tq_kernels" / "_cpu.so"

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")
_COMMON = ("tq_cpu", "constants", "finite", "kernels_portable")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_SPECIAL: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"kernels_avx2": _AVX2, "kernels_avx512": _AVX512},
    "aarch64": {"kernels_neon": ()},
}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


class BuildFailed(Exception):
    """No compiler, or one that refuses. The message is for a person."""


def build(library: Path = LIBRARY) -> None:
    """Compile everything and put the library at `library`, or raise BuildFailed and leave none there."""
    library.unlink(missing_ok=True)
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as folder:
        objects = _compile(compiler, Path(folder))
        linked = Path(folder) / library.name
        _wait(_start([*compiler, "-shared", "-o", str(linked), *map(str, objects), "-pthread"]))
        shutil.copy2(linked, library)


def find_compiler() -> list[str]:
    """The command of the C++ compiler: the variable CXX, or the first of c++, g++ and clang++."""
    if chosen := os.environ.get("CXX"):
        return shlex.split(chosen)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise BuildFailed("no C++ compiler (looked for CXX, c++, g++, clang++)")


def _compile(compiler: list[str], folder: Path) -> list[Path]:
    machine = platform.machine().lower()
    special = _SPECIAL.get(_MACHINES.get(machine, machine), {})
    objects = []
    running = []
    for name in (*special, *_COMMON):
        target = folder / f"{name}.o"
        flags = [*_FLAGS, *special.get(name, ())]
        running.append(_start([*compiler, *flags, "-c", str(SOURCES / f"{name}.cpp"), "-o", str(target)]))
        objects.append(target)
    for process in running:
        _wait(process)
    return objects


def _start(command: list[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603
    except OSError as error:
        raise BuildFailed(f"`{command[0]}` does not start: {error}") from error


def _wait(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    if process.returncode:
        last = (output.strip().splitlines() or ["no message"])[-1]
        raise BuildFailed(f"the C++ compiler failed: {last}")


if __name__ == "__main__":
    try:
        build()
    except BuildFailed as failure:
        sys.exit(f"error: {failure}")
