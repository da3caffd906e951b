"""Parse the header of a safetensors file as the format's specification demands, trusting nothing in it.

    8 bytes      N, little-endian
    N bytes      a JSON object: name -> dtype, shape, data_offsets; `__metadata__` -> strings
    the rest     the tensors' bytes, in order, without overlaps or holes

Only bytes already read are looked at here; reading files is the caller's work.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqcli.checkpoint.json_object import parse_object
from tqcli.errors import InputError

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 100_000_000

DTYPE_BITS: Mapping[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

# No integer in an honest header needs more digits than 2**63; longer ones are refused unread.
_MAX_INTEGER_DIGITS = 19
_MAX_DIMENSIONS = 64
_REFETCH = "fetch the file again"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `offset` and `nbytes` are bytes; `offset` counts from the start of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int

    @property
    def parameters(self) -> int:
        """How many elements: 1 for a scalar, 0 when a dimension is 0."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """One file's header. `tensors` are in the order of their bytes; `sha256` is over the 8 + N bytes."""

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    nbytes: int
    sha256: str


def header_bytes(prefix: bytes, file: str, file_size: int) -> int:
    """How many bytes the whole header takes, its 8-byte prefix included. Raises InputError."""
    if len(prefix) < PREFIX_BYTES or file_size < PREFIX_BYTES:
        raise InputError(
            f"`{file}` is truncated", why=f"{file_size} bytes cannot hold a safetensors header", fix=_REFETCH
        )
    declared = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if declared > MAX_HEADER_BYTES:
        raise InputError(
            f"`{file}` is not a safetensors file",
            why=f"it claims a header of {declared} bytes; the format allows {MAX_HEADER_BYTES}",
        )
    if PREFIX_BYTES + declared > file_size:
        raise InputError(
            f"`{file}` is truncated",
            why=f"its header should be {declared} bytes, the whole file is {file_size}",
            fix=_REFETCH,
        )
    return PREFIX_BYTES + declared


def parse_header(raw: bytes, file: str, file_size: int) -> Header:
    """The header in `raw`, the first bytes of a file of `file_size` bytes. Raises InputError."""
    nbytes = header_bytes(raw, file, file_size)
    if len(raw) < nbytes:
        raise InputError(f"`{file}` is truncated", why="its header ends early", fix=_REFETCH)
    text = raw[PREFIX_BYTES:nbytes]
    if not text.startswith(b"{"):
        raise InputError(f"`{file}` is not a safetensors file", why="its header does not begin with a brace")
    entries = parse_object(text, f"{file} (header)", parse_integer=_natural)
    metadata = _metadata(entries.pop("__metadata__", None), file)
    tensors = [_tensor(name, entry, file, nbytes) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_cover(tensors, file, nbytes, file_size)
    return Header(tuple(tensors), metadata, nbytes, hashlib.sha256(raw[:nbytes]).hexdigest())


def _natural(digits: str) -> int:
    if digits.startswith("-") or len(digits) > _MAX_INTEGER_DIGITS:
        raise ValueError(f"{digits[:40]} is not a size or an offset")
    return int(digits)


def _metadata(entry: Any, file: str) -> dict[str, str]:
    if entry is None:
        return {}
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise InputError(f"`__metadata__` of `{file}` must map strings to strings")
    for text in (*entry.keys(), *entry.values()):
        _check_text(text, file)
    return entry


def _tensor(name: str, entry: Any, file: str, data_start: int) -> TensorInfo:
    _check_text(name, file)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _lie(name, file, "its entry must hold `dtype`, `shape` and `data_offsets`, nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _lie(name, file, f"unknown dtype `{str(dtype)[:40]}`")
    if not _naturals(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _lie(name, file, "its shape is not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _lie(name, file, "its data_offsets are not a begin and an end")
    begin, end = offsets
    if _bits(shape, dtype) != 8 * (end - begin):
        raise _lie(name, file, f"{dtype} {str(shape)[:80]} does not take the {end - begin} bytes given to it")
    return TensorInfo(name, dtype, tuple(shape), file, data_start + begin, end - begin)


def _bits(shape: list[int], dtype: str) -> int | None:
    """Bits of a tensor, or None when the count passes 64 bits on the way (a later 0 does not excuse it)."""
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits >= 1 << 64:
            return None
    return bits


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _check_text(text: str, file: str) -> None:
    """JSON can spell half of a surrogate pair, which is no character and cannot be written back."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the header of `{file}` holds a name that is not valid text") from error


def _check_cover(tensors: list[TensorInfo], file: str, data_start: int, file_size: int) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            problem = "overlaps the tensor before it" if tensor.offset < position else "leaves a hole before it"
            raise _lie(tensor.name, file, f"it {problem}")
        position += tensor.nbytes
    if position > file_size:
        raise InputError(
            f"`{file}` is truncated",
            why=f"its header promises {position} bytes, it has {file_size}",
            fix=_REFETCH,
        )
    if position < file_size:
        raise InputError(
            f"`{file}` is longer than its header says",
            why=f"{file_size - position} bytes belong to no tensor",
        )


def _lie(name: str, file: str, why: str) -> InputError:
    return InputError(f"tensor `{name[:200]}` in `{file}` is not as the format demands", why=why)
