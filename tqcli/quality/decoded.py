"""A converted folder as a plain checkpoint again: the weights that it stands for, in float32, and their error.

What a compressed model computes differs from this only by the runtime's own rounding, so the loss of a format can be
measured without the runtime. Weights travel in pieces of some megabytes; nothing is held whole. Left out: folders that
do not tell their tensors' shapes. `tq convert FOLDER OUT --recipe bf16` writes the same rounded, for use.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tqcli.architectures.base import find
from tqcli.checkpoint.reader import Checkpoint, open_checkpoint
from tqcli.checkpoint.sidecars import CONFIG_NAME, copy_sidecar, sidecars
from tqcli.checkpoint.storage import LocalFolder
from tqcli.checkpoint.stored import Stored
from tqcli.checkpoint.writer import ShardWriter, lay_out_shards, write_atomically
from tqcli.codec.floats import is_float_dtype
from tqcli.errors import InputError
from tqcli.formats.native import RECIPE_NAME, TQ_CONFIG_NAME
from tqcli.layouts.base import find as find_layout
from tqcli.layouts.files import plain_config, to_json
from tqcli.layouts.originals import original_weights
from tqcli.packed import PackedTensor, decode_rows
from tqcli.readers.find import read
from tqcli.weights import Weight, read_elements, read_rows

_CHUNK_WEIGHTS = 2 << 20
_OWN_FILES = (TQ_CONFIG_NAME, RECIPE_NAME)


def write_decoded(converted: Path, folder: Path) -> None:
    """Write `converted` as a plain checkpoint with one shard to the new folder `folder`; packed weights become F32.

    Raises InputError where `converted` cannot be read or does not tell its tensors' shapes.
    """
    with LocalFolder(converted) as storage:
        source = open_checkpoint(storage)
        weights = original_weights(source, find(source.config))
        folder.mkdir(parents=True)
        _write_weights(source, weights, folder)
        for name in sidecars(storage)[0]:
            if name not in _OWN_FILES:
                copy_sidecar(storage, name, folder)
        write_atomically(folder / CONFIG_NAME, to_json(plain_config(source)))


def relative_error(converted: Path, original: Path) -> float:
    """Squared error of all packed weights together, over their squared length in `original`; 0 where none is packed.

    Raises InputError where a packed weight is not in `original` with that shape.
    """
    lost = total = 0.0
    with LocalFolder(converted) as output, LocalFolder(original) as source:
        here, there = open_checkpoint(output), open_checkpoint(source)
        contents = read(here)
        originals = original_weights(there, find(there.config))
        truths = {one.name: one for one in find_layout(contents.layout).arrange(originals, there).weights}
        for packed in contents.packed.values():
            truth = _same(truths.get(packed.name), packed, there)
            for begin, found in _decoded(here, packed, 0, packed.rows):
                wanted = read_rows(source, truth, begin, len(found))
                lost += float(np.square(found - wanted, dtype=np.float64).sum())
                total += float(np.square(wanted, dtype=np.float64).sum())
    return lost / total if total else 0.0


def _same(truth: Weight | None, packed: PackedTensor, original: Checkpoint) -> Weight:
    if truth is None or truth.shape != packed.shape or not is_float_dtype(truth.dtype):
        raise InputError(f"`{packed.name}` is not in `{original.storage.label}` with that shape")
    return truth


def _write_weights(source: Checkpoint, weights: tuple[Weight, ...], folder: Path) -> None:
    stored = [Stored(one.name, one.dtype if one.is_plain else "F32", one.shape) for one in weights]
    (layout,) = lay_out_shards([stored], shard_bytes=0)
    with ShardWriter(folder, layout) as writer:
        for weight in weights:
            if weight.is_plain:
                writer.append(weight.name, read_elements(source.storage, weight, 0, weight.rows).data.cast("B"))
                continue
            for run in weight.runs:
                if not isinstance(run.source, PackedTensor):
                    raise TypeError(f"{weight.name} is compressed in part")
                for _, rows in _decoded(source, run.source, run.first, run.rows):
                    writer.append(weight.name, rows.data.cast("B"))
        writer.finish()


def _decoded(
    checkpoint: Checkpoint, packed: PackedTensor, first: int, count: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, float32 (some rows, columns)) of `count` rows, in order and without a gap, unrounded."""
    step = max(1, _CHUNK_WEIGHTS // packed.columns)
    for begin in range(first, first + count, step):
        yield begin, decode_rows(checkpoint.storage, packed, begin, min(begin + step, first + count))
