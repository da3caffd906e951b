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
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARY = SOURCES.parent / "tq_kernels" / "_cpu.so"

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# Instruction set -> flags, for each kind of machine.
_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"portable": (), "avx2": _AVX2, "avx512": _AVX512},
    "aarch64": {"portable": (), "neon": ()},
}
# Families whose loops compilers vectorise: one source, compiled for each instruction set. The name ends so.
_FAMILY = "_kernels"
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


class BuildFailed(Exception):
    """No compiler, or one that refuses. The message is for a person."""


def build(library: Path = LIBRARY) -> None:
    """Compile everything and put the library at `library`, or raise BuildFailed and leave none there.

    One that is in use stays as it is until the new one takes its place.
    """
    try:
        compiler = find_compiler()
        with tempfile.TemporaryDirectory() as folder:
            objects = _compile(compiler, Path(folder))
            linked = library.with_suffix(".partial")
            _wait(_start([*compiler, "-shared", "-o", str(linked), *map(str, objects), "-pthread"]))
            linked.replace(library)
    except BuildFailed:
        library.unlink(missing_ok=True)
        raise


def find_compiler() -> list[str]:
    """The command of the C++ compiler: the variable CXX, or the first of c++, g++ and clang++."""
    if chosen := os.environ.get("CXX"):
        return shlex.split(chosen)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise BuildFailed("no C++ compiler (looked for CXX, c++, g++, clang++)")


def _compile(compiler: list[str], folder: Path) -> list[Path]:
    objects = []
    running = []
    for target, source, flags in _units():
        output = folder / f"{target}.o"
        running.append(_start([*compiler, *_FLAGS, *flags, "-c", str(source), "-o", str(output)]))
        objects.append(output)
    for process in running:
        _wait(process)
    return objects


def _units() -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """(name, source, further flags) of each translation unit, the slowest to compile first."""
    machine = platform.machine().lower()
    sets = _SETS.get(_MACHINES.get(machine, machine), {"portable": ()})
    for name, flags in reversed(sets.items()):
        yield f"kernels_{name}", SOURCES / f"kernels_{name}.cpp", flags
    for source in sorted(SOURCES.glob("*.cpp")):
        if source.stem.endswith(_FAMILY):
            for name, flags in sets.items():
                yield f"{source.stem}_{name}", source, ("-O3", f"-DTQ_SET={name}", *flags)
        elif not source.stem.startswith("kernels_"):
            yield source.stem, source, ()


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
