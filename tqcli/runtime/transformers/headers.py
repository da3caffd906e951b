"""What a checkpoint's files hold, read from their headers: never derived from rules about names.

A packed tensor is a pair, `B.tq_packed` and `B.tq_norms`; the two may lie in different files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from tqcli.checkpoint.header import PREFIX_BYTES, TensorInfo, header_bytes, parse_header
from tqcli.errors import InputError, MachineError, TqError
from tqcli.formats.native import NORMS, PACKED


@dataclass(frozen=True)
class Pair:
    """One packed tensor on disk.

    name: the base name B. packed: uint8 (rows * n, bytes a group) or (rows, n * bytes a group). norms: float32
    (rows, n), n groups a row.
    """

    name: str
    packed: tuple[int, ...]
    norms: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows of the weight: all its dimensions but the last, flattened."""
        return self.norms[0]

    @property
    def groups(self) -> int:
        """Groups a row."""
        return self.norms[1]

    @property
    def group_bytes(self) -> int:
        """Bytes a group takes; 0 where the sizes do not divide."""
        count = prod(self.norms)
        total = prod(self.packed)
        return total // count if count and total % count == 0 else 0


def read_headers(files: Iterable[str | Path]) -> dict[str, TensorInfo]:
    """Every tensor of the safetensors files, by name.

    Raises InputError where a file is not whole, or two hold the same tensor.
    """
    found: dict[str, TensorInfo] = {}
    for file in files:
        for tensor in _tensors(Path(file)):
            twin = found.setdefault(tensor.name, tensor)
            if twin is not tensor:
                raise InputError(
                    f"tensor `{tensor.name}` is in two files",
                    why=f"`{twin.file}` and `{tensor.file}`",
                    fix="remove the files of an earlier conversion from the folder",
                )
    return found


def find_packed(files: Iterable[str | Path]) -> str | None:
    """The name of a packed tensor in the files, if there is one. Files that cannot be read hold none."""
    for file in files:
        try:
            names = [tensor.name for tensor in _tensors(Path(file))]
        except TqError:
            continue
        found = next((name for name in names if name.endswith(PACKED)), None)
        if found is not None:
            return found
    return None


def pairs(tensors: Mapping[str, TensorInfo]) -> list[Pair]:
    """The packed tensors. Raises InputError where half of a pair is missing, or of another type or shape."""
    names = {_base(name) for name in tensors if name.endswith((PACKED, NORMS))}
    return [_pair(name, tensors) for name in sorted(names)]


def _base(name: str) -> str:
    return name.removesuffix(PACKED).removesuffix(NORMS)


def _pair(name: str, tensors: Mapping[str, TensorInfo]) -> Pair:
    for suffix in (PACKED, NORMS):
        if name + suffix not in tensors:
            raise InputError(f"tensor `{name}{suffix}` is missing", why="its other half is there")
    packed, norms = tensors[name + PACKED], tensors[name + NORMS]
    if packed.dtype != "U8" or norms.dtype != "F32":
        raise InputError(
            f"packed tensor `{name}` is of types that are not known",
            why=f"codes are {packed.dtype}, norms {norms.dtype}; U8 and F32 are read",
        )
    if len(packed.shape) != 2 or len(norms.shape) != 2:
        raise InputError(f"packed tensor `{name}` is not stored as two matrices")
    return Pair(name, packed.shape, norms.shape)


def _tensors(path: Path) -> tuple[TensorInfo, ...]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(PREFIX_BYTES)
            rest = file.read(header_bytes(prefix, path.name, size) - len(prefix))
    except OSError as error:
        raise MachineError(f"cannot read `{path}`", why=str(error.strerror or error)) from error
    return parse_header(prefix + rest, path.name, size).tensors
