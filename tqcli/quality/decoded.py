"""A converted folder as a plain checkpoint again: the weights that it stands for, in float32, and their error.

What a compressed model computes differs from this only by the runtime's own rounding, so the loss of a format can be
measured without the runtime. Weights travel in pieces of some megabytes; nothing is held whole. Left out: folders that
do not tell their tensors' shapes, and tensors other than those that the converter packs.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tqcli.checkpoint.reader import Checkpoint, open_checkpoint
from tqcli.checkpoint.sidecars import CONFIG_NAME, copy_sidecar, sidecars
from tqcli.checkpoint.storage import LocalFolder
from tqcli.checkpoint.stored import Stored
from tqcli.checkpoint.writer import ShardWriter, lay_out_shards, write_atomically
from tqcli.codec.floats import as_elements, is_float_dtype, widen
from tqcli.comparison import decode_rows
from tqcli.documents import to_json
from tqcli.errors import InputError
from tqcli.formats.native import RECIPE_NAME, TQ_CONFIG_NAME
from tqcli.packed import PackedTensor, packed_tensors, read_tq_config

_CHUNK_WEIGHTS = 2 << 20
_OWN_FILES = (TQ_CONFIG_NAME, RECIPE_NAME)
_OWN_KEYS = ("quantization_config", "transformers_weights")


def write_decoded(converted: Path, folder: Path) -> None:
    """Write `converted` as a plain checkpoint with one shard to the new folder `folder`; packed weights become F32.

    Raises InputError where `converted` cannot be read or does not tell its tensors' shapes.
    """
    with LocalFolder(converted) as storage:
        source = open_checkpoint(storage)
        packed = _packed(source)
        folder.mkdir(parents=True)
        _write_weights(source, packed, folder)
        for name in sidecars(storage)[0]:
            if name not in _OWN_FILES:
                copy_sidecar(storage, name, folder)
        config = {key: value for key, value in source.config.items() if key not in _OWN_KEYS}
        write_atomically(folder / CONFIG_NAME, to_json(config))


def relative_error(converted: Path, original: Path) -> float:
    """Squared error of all packed weights together, over their squared length in `original`; 0 where none is packed.

    Raises InputError where a packed tensor is not in `original` with that shape.
    """
    lost = total = 0.0
    with LocalFolder(converted) as output, LocalFolder(original) as source:
        here, there = open_checkpoint(output), open_checkpoint(source)
        for pair in _packed(here).values():
            for begin, found in _decoded(here, pair):
                truth = _rows(there, pair, begin, len(found))
                lost += float(np.square(found - truth, dtype=np.float64).sum())
                total += float(np.square(truth, dtype=np.float64).sum())
    return lost / total if total else 0.0


def _packed(checkpoint: Checkpoint) -> dict[str, PackedTensor]:
    packed = packed_tensors(checkpoint, read_tq_config(checkpoint))
    for name, pair in packed.items():
        if pair.shape is None:
            raise InputError(f"`{name}` has no known shape", why=f"`{TQ_CONFIG_NAME}` does not tell it")
    return packed


def _write_weights(source: Checkpoint, packed: dict[str, PackedTensor], folder: Path) -> None:
    halves = {tensor.name for pair in packed.values() for tensor in (pair.codes, pair.norms)}
    kept = [tensor for tensor in source.tensors.values() if tensor.name not in halves]
    stored = [Stored(name, "F32", pair.shape or ()) for name, pair in packed.items()]
    stored += [Stored(tensor.name, tensor.dtype, tensor.shape) for tensor in kept]
    (layout,) = lay_out_shards([stored], shard_bytes=0)
    with ShardWriter(folder, layout) as writer:
        for name, pair in packed.items():
            for _, rows in _decoded(source, pair):
                writer.append(name, rows.data.cast("B"))
        for tensor in kept:
            writer.append(tensor.name, source.storage.read(tensor.file, tensor.offset, tensor.nbytes))
        writer.finish()


def _decoded(checkpoint: Checkpoint, pair: PackedTensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, float32 (some rows, columns)), in order and without a gap."""
    step = max(1, _CHUNK_WEIGHTS // pair.columns)
    for begin in range(0, pair.rows, step):
        end = min(begin + step, pair.rows)
        yield begin, decode_rows(checkpoint, pair, begin, end, pair.columns)


def _rows(original: Checkpoint, pair: PackedTensor, begin: int, count: int) -> NDArray[np.float32]:
    tensor = original.tensors.get(pair.name)
    if tensor is None or tensor.shape != pair.shape or not is_float_dtype(tensor.dtype):
        raise InputError(f"`{pair.name}` is not in `{original.storage.label}` with that shape")
    width = tensor.nbytes // pair.rows
    raw = original.storage.read(tensor.file, tensor.offset + begin * width, count * width)
    return widen(as_elements(raw, tensor.dtype), tensor.dtype).reshape(count, pair.columns)
