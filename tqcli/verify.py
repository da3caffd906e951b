"""Does a folder hold what it says, and is it what the source said? Nothing is taken on trust from the writing run.

Always: headers against index, the tensors and files that tq_config.json lists and no other tensors, what config.json
says of them, every checksum, all floats finite. With the source at hand: every weight of it is there and compared with
it (`comparison`), every side file too. Left out: whether a model answers well (that is `quality`).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import tq_kernels

from tqcli.architectures.base import find as find_architecture
from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.sidecars import sidecars
from tqcli.checkpoint.storage import Storage
from tqcli.codec.floats import as_elements, is_float_dtype
from tqcli.comparison import SAMPLED_ROWS, TensorError, compare_kept, compare_packed
from tqcli.errors import CheckFailed
from tqcli.layouts.base import find as find_layout
from tqcli.layouts.originals import original_weights
from tqcli.readers.find import Contents, read
from tqcli.section import check_section
from tqcli.weights import Weight

_CHUNK_BYTES = 8 << 20
# One published generation left this out of the names of packed tensors.
_WEIGHT = ".weight"
# The model card is rewritten when a checkpoint is published.
_MAY_DIFFER = ("README.md",)


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
    contents = read(output)
    listed = _listed(contents.record)
    if _is_ours(output, contents.record):
        _check_listed(output, listed)
        _check_files(output, contents.record)
        check_section(output, contents)
    originals = () if source is None else _arranged(source, contents.layout)
    if source is not None:
        _check_complete(output, source, originals, contents)
        _check_side_files(output, source)
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda one: _check_bytes(output, one, listed.get(one.name)), output.tensors.values()):
            pass
        compared = list(pool.map(lambda one: _compare(output, contents, source, one, every_row), originals))
    return Report(
        tensors=len(output.tensors),
        packed=len(contents.packed),
        checksums=len(listed),
        compared=len(compared),
        rows="all rows" if every_row else f"{SAMPLED_ROWS} rows each",
        worst=max((error for error in compared if error), key=lambda error: error.error, default=None),
    )


def _arranged(source: Checkpoint, layout: str) -> tuple[Weight, ...]:
    """The source's weights as a folder of that layout should have them."""
    originals = original_weights(source, find_architecture(source.config))
    return find_layout(layout).arrange(originals, source).weights


def _compare(
    output: Checkpoint, contents: Contents, source: Checkpoint | None, original: Weight, every_row: bool
) -> TensorError | None:
    if source is None:
        return None
    packed = contents.packed.get(original.name) or contents.packed.get(original.name.removesuffix(_WEIGHT))
    if packed:
        return compare_packed(output, packed, source.storage, original, every_row=every_row)
    compare_kept(output, output.tensors[original.name], source.storage, original, every_row=every_row)
    return None


def _listed(config: Mapping[str, Any]) -> dict[str, str]:
    """Stored tensor -> SHA-256, as tq_config.json has it; empty for published folders, which have none.

    Raises CheckFailed where a tensor is listed without.
    """
    tensors = config.get("tensors")
    entries = tensors.values() if isinstance(tensors, Mapping) else ()
    listed: dict[str, str] = {}
    for entry in entries:
        sums = entry.get("sha256") if isinstance(entry, Mapping) else None
        if not isinstance(sums, Mapping) or not all(isinstance(value, str) for value in sums.values()):
            raise CheckFailed("`tq_config.json` lists a tensor without checksums")
        listed.update(sums)
    return listed


def _is_ours(output: Checkpoint, config: Mapping[str, Any]) -> bool:
    """Whether tq wrote the folder, so that everything must be listed. Raises CheckFailed if the list is lost."""
    section = output.config.get("quantization_config")
    wrote = isinstance(section, Mapping) and str(section.get("tool")).startswith("tqcli ")
    if wrote and not isinstance(config.get("tensors"), Mapping):
        raise CheckFailed("`tq_config.json` lists no tensors", why="tq wrote this folder, and always writes the list")
    return wrote or "format_version" in config


def _check_files(output: Checkpoint, config: Mapping[str, Any]) -> None:
    files = config.get("files")
    for name in files if isinstance(files, list) else ():
        if name not in output.storage.files():
            raise CheckFailed(f"the file `{name}` is missing", why="`tq_config.json` lists it")


def _check_side_files(output: Checkpoint, source: Checkpoint) -> None:
    """Tokenizer, chat template and the like: the source's, byte for byte."""
    for name in sidecars(source.storage)[0]:
        if name not in output.storage.files():
            raise CheckFailed(f"the file `{name}` of the source is missing")
        if name not in _MAY_DIFFER and not _same_file(output.storage, source.storage, name):
            raise CheckFailed(f"the file `{name}` differs from the source's")


def _same_file(first: Storage, second: Storage, name: str) -> bool:
    nbytes = second.files()[name]
    if first.files()[name] != nbytes:
        return False
    places = ((begin, min(_CHUNK_BYTES, nbytes - begin)) for begin in range(0, nbytes, _CHUNK_BYTES))
    return all(first.read(name, *place) == second.read(name, *place) for place in places)


def _check_listed(output: Checkpoint, listed: Mapping[str, str]) -> None:
    missing = [name for name in listed if name not in output.tensors]
    if missing:
        raise CheckFailed(f"`{missing[0]}` is missing", why=f"{len(missing)} listed tensors are in no shard")
    extra = [name for name in output.tensors if name not in listed]
    if extra:
        raise CheckFailed(f"`{extra[0]}` is not listed in `tq_config.json`", why=f"{len(extra)} tensors are not")


def _check_bytes(output: Checkpoint, tensor: TensorInfo, expected: str | None) -> None:
    """One pass over a tensor: its checksum, and that floats are finite."""
    state = hashlib.sha256()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, tensor.nbytes)))
    for begin in range(0, tensor.nbytes, _CHUNK_BYTES):
        chunk = buffer[: tensor.nbytes - begin]
        output.storage.read_into(tensor.file, tensor.offset + begin, chunk)
        if expected:
            state.update(chunk)
        if is_float_dtype(tensor.dtype):
            bad = tq_kernels.first_non_finite(as_elements(chunk, tensor.dtype), tensor.dtype)
            if bad is not None:
                element = begin * tensor.parameters // tensor.nbytes + bad
                raise CheckFailed(f"`{tensor.name}` holds NaN or Inf", why=f"element {element}, in `{tensor.file}`")
    if expected and state.hexdigest() != expected:
        why = f"its checksum differs, in `{tensor.file}`"
        raise CheckFailed(f"`{tensor.name}` is not what was written", why=why)


def _check_complete(output: Checkpoint, source: Checkpoint, originals: Sequence[Weight], contents: Contents) -> None:
    known = {*contents.packed, *output.tensors}
    for weight in originals:
        if weight.name not in known and weight.name.removesuffix(_WEIGHT) not in contents.packed:
            raise CheckFailed(f"`{weight.name}` of the source is missing")
    expected = {weight.name for weight in originals} | source.tensors.keys()
    extra = [name for name in _weights_of(output, contents) if not {name, name + _WEIGHT} & expected]
    if extra:
        raise CheckFailed(f"`{extra[0]}` is not in the source")


def _weights_of(output: Checkpoint, contents: Contents) -> Iterator[str]:
    inside = contents.plain_names
    yield from contents.packed
    yield from (name for name in output.tensors if name not in inside)
