"""Which levels an HLWQ folder was made with, proved from the original: a file holds indices, and seldom their levels.

Some rows of every weight show between which values neighbouring indices meet (`codec.hlwq_identify`). Left out: how far
the decode is from the original, which verification tells; with wrong levels it is near enough to pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tq_kernels.hlwq import BLOCK
from tq_kernels.hlwq_reference import unpack

from tqcli.checkpoint.reader import Checkpoint
from tqcli.codec.floats import as_array
from tqcli.codec.hlwq_identify import Boundaries, boundaries, contradictions
from tqcli.codec.hlwq_tables import levels
from tqcli.codec.hlwq_variants import half_blocks, lowest_first
from tqcli.codec.lloyd_max import boundaries as midpoints
from tqcli.errors import CheckFailed
from tqcli.formats.hlwq import Hlwq
from tqcli.formats.hlwq_legacy import HlwqLegacy
from tqcli.packed import PackedTensor
from tqcli.weights import Weight, read_rows

_ROWS = 32

# Weights whose levels are claimed to be the same.
_Levels = tuple[float, ...]


@dataclass(frozen=True)
class Proof:
    """Weights of one width. claimed: how the folder calls their levels. fitting: the known tables that fit the weights;
    more than one where they are too alike. wrong: boundaries between the claimed levels that cannot be.
    """

    bits: int
    claimed: str
    weights: int
    fitting: tuple[str, ...]
    wrong: int

    def check(self) -> None:
        """Raises CheckFailed where the indices cannot come from the levels that the folder claims."""
        if not self.wrong:
            return
        made = f"they fit `{'`, `'.join(self.fitting)}`" if self.fitting else "they fit no known levels"
        why = f"{self.wrong} of {(1 << self.bits) - 1} boundaries lie elsewhere; {made}"
        raise CheckFailed(f"the {self.bits}-bit weights were not made with the levels `{self.claimed}`", why=why)


def prove(
    checkpoint: Checkpoint, packed: Mapping[str, PackedTensor], source: Checkpoint, originals: Sequence[Weight]
) -> tuple[Proof, ...]:
    """One for each width and claim. originals: the source's weights, arranged as the folder has them; those of another
    shape than the folder's are passed over.
    """
    groups: dict[_Levels, list[Weight]] = {}
    for weight in originals:
        one = packed.get(weight.name)
        if one is not None and one.shape == weight.shape and _levels(one):
            groups.setdefault(_levels(one), []).append(weight)
    return tuple(_prove(checkpoint, packed, source, weights) for weights in groups.values())


def _prove(
    checkpoint: Checkpoint, packed: Mapping[str, PackedTensor], source: Checkpoint, weights: Sequence[Weight]
) -> Proof:
    first = packed[weights[0].name]
    values = np.array(_levels(first), dtype=np.float32)
    bits = len(values).bit_length() - 1
    claimed = _claimed(first)
    seen: Boundaries | None = None
    for weight in weights:
        for one in _seen(checkpoint, packed[weight.name], source, weight, bits):
            seen = one if seen is None else seen.joined(one)
    if seen is None:
        return Proof(bits, claimed, 0, (), 0)
    fitting = tuple(table for table, count in contradictions(seen).items() if count == 0)
    return Proof(bits, claimed, len(weights), fitting, seen.contradicted(midpoints(values)))


def _seen(
    checkpoint: Checkpoint, packed: PackedTensor, source: Checkpoint, weight: Weight, bits: int
) -> Iterator[Boundaries]:
    """A few rows from the middle: the first and the last are special in some embeddings."""
    rows = min(_ROWS, weight.rows)
    first = (weight.rows - rows) // 2
    if rows:
        truth = read_rows(source.storage, weight, first, rows)
        yield boundaries(truth, "F32", _indices(checkpoint, packed, first, rows, bits), bits)


def _indices(checkpoint: Checkpoint, packed: PackedTensor, first: int, rows: int, bits: int) -> NDArray[np.uint8]:
    codes = packed.parts[0].tensor
    width = codes.nbytes // packed.rows
    raw: NDArray[Any] = as_array(checkpoint.storage.read(codes.file, codes.offset + first * width, rows * width), "U8")
    packing = packed.format.packing if isinstance(packed.format, HlwqLegacy) else "highest-first"
    if packing == "highest-first":
        return unpack(raw, bits, raw.size * 8 // bits // BLOCK * BLOCK)
    if packing == "half-blocks":
        return half_blocks(raw)
    return lowest_first(raw, bits) if packing == "lowest-first" else raw


def _levels(packed: PackedTensor) -> _Levels:
    if isinstance(packed.format, Hlwq):
        return tuple(levels(packed.format.table, packed.format.bits).tolist())
    return packed.format.levels if isinstance(packed.format, HlwqLegacy) else ()


def _claimed(packed: PackedTensor) -> str:
    stored_as = packed.format
    return (stored_as.table if isinstance(stored_as, Hlwq | HlwqLegacy) else None) or "of the file"
