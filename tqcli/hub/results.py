"""What was measured on a checkpoint: rows of `tq_results.jsonl` beside it, each tied by a hash to the bytes it is of.

A number stays true only of the weights that it was measured on, so each row names them by `fingerprint`, and a row of
other weights is counted and never shown. Left out: measuring, and writing the file.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.storage import Storage
from tqcli.errors import InputError
from tqcli.readers.record import read_tq_config, recorded_sums

RESULTS_NAME = "tq_results.jsonl"

_MAX_BYTES = 1 << 20
_MAX_ROWS = 1000
_CHUNK_BYTES = 8 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")

_Short = Annotated[str, Field(min_length=1, max_length=200)]
_Long = Annotated[str, Field(min_length=1, max_length=1000)]


class Result(BaseModel):
    """One measurement. weights: the `fingerprint` of what was measured; date: YYYY-MM-DD, time of day allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weights: Annotated[str, Field(pattern=r"^(tensors|files):[0-9a-f]{64}$")]
    metric: _Short
    value: Annotated[float, Field(allow_inf_nan=False)]
    unit: Annotated[str, Field(max_length=40)]
    command: _Long
    machine: _Long
    versions: Annotated[dict[_Short, _Short], Field(max_length=40)]
    date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9:.+Z-]{1,32})?$")]


@dataclass(frozen=True)
class Measured:
    """The rows of these very weights, their lines as they are in the file, and how many rows are of other weights."""

    rows: tuple[Result, ...] = ()
    lines: tuple[bytes, ...] = ()
    others: int = 0


def fingerprint(checkpoint: Checkpoint) -> str:
    """What tells these weights, with their config.json, from all others: `tensors:` or `files:` and a SHA-256.

    Of the checksums that tq_config.json records for every tensor; they are taken on trust, so verify first. A folder
    without them is read as a whole, which takes as long as reading takes. Raises InputError, MachineError.
    """
    config = hashlib.sha256(checkpoint.config_bytes).hexdigest()
    sums = recorded_sums(read_tq_config(checkpoint))
    # A list that lacks tensors would let weights change unnoticed.
    if sums.keys() == checkpoint.tensors.keys() and all(_is_sum(one) for one in sums.values()):
        tensors = [[name, one.dtype, list(one.shape), sums[name]] for name, one in sorted(checkpoint.tensors.items())]
        return f"tensors:{_digest([config, tensors])}"
    shards = sorted(shard.name for shard in checkpoint.shards)
    return f"files:{_digest([config, [[name, _file_sum(checkpoint.storage, name)] for name in shards]])}"


def read_results(checkpoint: Checkpoint, weights: str) -> Measured:
    """The rows of a folder's results file that were measured on `weights`. Raises InputError where it is damaged."""
    size = checkpoint.storage.files().get(RESULTS_NAME, 0)
    if size > _MAX_BYTES:
        raise InputError(f"`{RESULTS_NAME}` is too large", why=f"it is {size} bytes, the limit is {_MAX_BYTES}")
    raw = checkpoint.storage.read(RESULTS_NAME, 0, size) if size else b""
    every = list(_rows(raw))
    here = [(row, line) for row, line in every if row.weights == weights]
    return Measured(tuple(row for row, _ in here), tuple(line for _, line in here), len(every) - len(here))


def _rows(raw: bytes) -> Iterator[tuple[Result, bytes]]:
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    if len(lines) > _MAX_ROWS:
        raise InputError(f"`{RESULTS_NAME}` has too many rows", why=f"{len(lines)}, the limit is {_MAX_ROWS}")
    for number, line in lines:
        where = f"{RESULTS_NAME}:{number}"
        try:
            yield Result.model_validate(parse_object(line, where)), line
        except ValidationError as error:
            problem = error.errors()[0]
            why = f"{'.'.join(map(str, problem['loc']))[:80]}: {problem['msg']}"
            raise InputError(f"`{where}` is no result", why=why, fix="remove the line, and measure again") from error


def _is_sum(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _file_sum(storage: Storage, name: str) -> str:
    size = storage.files()[name]
    state = hashlib.sha256()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, size)))
    for begin in range(0, size, _CHUNK_BYTES):
        chunk = buffer[: size - begin]
        storage.read_into(name, begin, chunk)
        state.update(chunk)
    return state.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
