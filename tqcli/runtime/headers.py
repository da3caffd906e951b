"""What a checkpoint's files hold, read from their headers: never derived from rules about names.

A packed tensor is a pair, such as `B.tq_packed` and `B.tq_norms`; the two may lie in different files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqcli.checkpoint.header import PREFIX_BYTES, TensorInfo, header_bytes, parse_header
from tqcli.errors import InputError, MachineError, TqError
from tqcli.formats.native import PAIRS

_CODES = tuple(codes for codes, _ in PAIRS.values())
_PLAIN = "a plain tensor"


@dataclass(frozen=True)
class Pair:
    """One packed tensor on disk: two matrices.

    name: the base name B. format: told by the endings of the two names. codes: its rows are those of the weight, or,
    in `tq`, groups of them. scales: (rows, groups a row) of what goes with each group.
    """

    name: str
    format: str
    codes: TensorInfo
    scales: TensorInfo

    @property
    def rows(self) -> int:
        """Rows of the weight: all its dimensions but the last, flattened."""
        return self.scales.shape[0]

    @property
    def groups(self) -> int:
        """Groups a row."""
        return self.scales.shape[1]


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
        found = next((name for name in names if name.endswith(_CODES)), None)
        if found is not None:
            return found
    return None


def pairs(tensors: Mapping[str, TensorInfo]) -> list[Pair]:
    """The packed tensors. Raises InputError where half of a pair is missing, or no matrix, or one is there twice."""
    found: dict[str, str] = {}
    for name in tensors:
        base, kind = _split(name)
        if found.setdefault(base, kind) != kind:
            raise InputError(f"`{base}` is there twice", why=f"as {found[base]} and as {kind}")
    return [_pair(name, kind, tensors) for name, kind in sorted(found.items()) if kind != _PLAIN]


def _split(name: str) -> tuple[str, str]:
    """A tensor's base name, and the format that its ending tells."""
    for stored_as, endings in PAIRS.items():
        for ending in endings:
            if name.endswith(ending):
                return name.removesuffix(ending), stored_as
    return name, _PLAIN


def _pair(name: str, stored_as: str, tensors: Mapping[str, TensorInfo]) -> Pair:
    for suffix in PAIRS[stored_as]:
        if name + suffix not in tensors:
            raise InputError(f"tensor `{name}{suffix}` is missing", why="its other half is there")
    codes, scales = (tensors[name + suffix] for suffix in PAIRS[stored_as])
    if len(codes.shape) != 2 or len(scales.shape) != 2:
        raise InputError(f"packed tensor `{name}` is not stored as two matrices")
    return Pair(name, stored_as, codes, scales)


def _tensors(path: Path) -> tuple[TensorInfo, ...]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(PREFIX_BYTES)
            rest = file.read(header_bytes(prefix, path.name, size) - len(prefix))
    except OSError as error:
        raise MachineError(f"cannot read `{path}`", why=str(error.strerror or error)) from error
    return parse_header(prefix + rest, path.name, size).tensors
