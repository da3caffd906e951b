"""Does a folder hold what it says, and is it what the source said? Nothing is taken on trust from the writing run.

Always: headers against index, the tensors that tq_config.json lists and no others, every checksum, all floats finite.
With the source at hand: every tensor of it is there and compared with it (`comparison`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import tq_kernels

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
from tqcli.codec.floats import as_elements, is_float_dtype
from tqcli.comparison import SAMPLED_ROWS, TensorError, compare_kept, compare_packed
from tqcli.errors import CheckFailed
from tqcli.packed import PackedTensor, packed_tensors, read_tq_config

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Report:
    """What was checked. worst is None where nothing was compared with a source."""

    tensors: int
    packed: int
    checksums: int
    compared: int
    rows: str
    worst: TensorError | None


def verify(output: Checkpoint, source: Checkpoint | None, *, every_row: bool, workers: int) -> Report:
    """Check a whole folder.

    Raises CheckFailed naming the tensor, InputError where headers or files are unreadable.
    """
    config = read_tq_config(output)
    packed = packed_tensors(output, config)
    listed = _listed(config)
    if listed:
        _check_listed(output, listed)
    if source is not None:
        _check_complete(output, source, packed)
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda one: _check_bytes(output, one, listed.get(one.name)), output.tensors.values()):
            pass
        originals = source.tensors.values() if source else ()
        compared = list(pool.map(lambda one: _compare(output, packed, source, one, every_row), originals))
    return Report(
        tensors=len(output.tensors),
        packed=len(packed),
        checksums=len(listed),
        compared=len(compared),
        rows="all rows" if every_row else f"{SAMPLED_ROWS} rows each",
        worst=max((error for error in compared if error), key=lambda error: error.error, default=None),
    )


def _compare(
    output: Checkpoint,
    packed: Mapping[str, PackedTensor],
    source: Checkpoint | None,
    original: TensorInfo,
    every_row: bool,
) -> TensorError | None:
    if source is None:
        return None
    pair = packed.get(original.name)
    if pair:
        return compare_packed(output, pair, source, original, every_row=every_row)
    compare_kept(output, output.tensors[original.name], source, original, every_row=every_row)
    return None


def _listed(config: Mapping[str, Any]) -> dict[str, str]:
    """Stored tensor -> SHA-256, as tq_config.json has it; empty for published folders, which have none."""
    tensors = config.get("tensors")
    entries = tensors.values() if isinstance(tensors, Mapping) else ()
    listed: dict[str, str] = {}
    for entry in entries:
        sums = entry.get("sha256") if isinstance(entry, Mapping) else None
        if not isinstance(sums, Mapping) or not all(isinstance(value, str) for value in sums.values()):
            raise CheckFailed("`tq_config.json` lists a tensor without checksums")
        listed.update(sums)
    return listed


def _check_listed(output: Checkpoint, listed: Mapping[str, str]) -> None:
    missing = [name for name in listed if name not in output.tensors]
    if missing:
        raise CheckFailed(f"`{missing[0]}` is missing", why=f"{len(missing)} listed tensors are in no shard")
    extra = [name for name in output.tensors if name not in listed]
    if extra:
        raise CheckFailed(f"`{extra[0]}` is not listed in `tq_config.json`", why=f"{len(extra)} such tensors")


def _check_bytes(output: Checkpoint, tensor: TensorInfo, expected: str | None) -> None:
    """One pass over a tensor: its checksum, and that floats are finite."""
    state = hashlib.sha256()
    for begin in range(0, tensor.nbytes, _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, tensor.nbytes - begin)
        chunk = output.storage.read(tensor.file, tensor.offset + begin, size)
        if expected:
            state.update(chunk)
        if is_float_dtype(tensor.dtype):
            elements = as_elements(chunk, tensor.dtype)
            if tq_kernels.first_non_finite(elements, tensor.dtype) is not None:
                raise CheckFailed(f"`{tensor.name}` holds NaN or Inf")
    if expected and state.hexdigest() != expected:
        why = f"its checksum differs, in `{tensor.file}`"
        raise CheckFailed(f"`{tensor.name}` is not what was written", why=why)


def _check_complete(output: Checkpoint, source: Checkpoint, packed: Mapping[str, PackedTensor]) -> None:
    for name in source.tensors:
        if name not in packed and name not in output.tensors:
            raise CheckFailed(f"`{name}` of the source is missing")
    extra = [name for name in _original_names(output, packed) if name not in source.tensors]
    if extra:
        raise CheckFailed(f"`{extra[0]}` is not in the source")


def _original_names(output: Checkpoint, packed: Mapping[str, PackedTensor]) -> Iterator[str]:
    halves = {tensor.name for pair in packed.values() for tensor in (pair.codes, pair.norms)}
    yield from packed
    yield from (name for name in output.tensors if name not in halves)
