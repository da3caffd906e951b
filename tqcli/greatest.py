"""The greatest magnitude of weights that share a scale, found when the first of them is encoded.

The weights of one group are read once more than those of other formats; they are small, and then in the page cache.
Left out: which weights share a scale, which the plan says.
"""

import threading
from collections.abc import Sequence

import numpy as np

from tqcli.checkpoint.storage import Storage
from tqcli.weights import Weight, read_rows

_CHUNK_BYTES = 8 << 20


class Greatest:
    """Remembers what it found, for the pieces that follow. Safe to use from several threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._found: dict[tuple[str, ...], float] = {}

    def __call__(self, weights: Sequence[Weight]) -> float:
        """max |w| over all of the weights; NaN and Inf are left to the encoder, which names their place."""
        key = tuple(weight.name for weight in weights)
        with self._lock:
            if key not in self._found:
                self._found[key] = max(self._of(weight) for weight in weights)
            return self._found[key]

    def _of(self, weight: Weight) -> float:
        step = max(1, _CHUNK_BYTES // max(4 * weight.columns, 1))
        parts = (
            read_rows(self._storage, weight, first, min(step, weight.rows - first))
            for first in range(0, weight.rows, step)
        )
        return max(float(np.abs(part[np.isfinite(part)]).max(initial=0.0)) for part in parts)
