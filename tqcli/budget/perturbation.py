"""A loaded model with some of its weights as they would read once stored, and back: what measuring their worth needs.

Weights are found by the names of the model's own parameters, whatever the checkpoint calls them. One tensor at a time
is kept aside; rows are encoded in pieces of some megabytes. Left out: text and divergence (`calibration`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from tq_kernels.floats import widen
from tq_kernels.tensor_rows import as_array
from tq_kernels.types import FloatDtype

from tqcli.architectures.base import Architecture, TensorRole
from tqcli.budget.sampling import squared
from tqcli.formats.base import Format

_PIECE_WEIGHTS = 1 << 21
_DTYPES: dict[torch.dtype, FloatDtype] = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True, eq=False)
class Parameter:
    """One matrix, or all experts of a layer in one, of a loaded model."""

    role: TensorRole
    tensor: torch.Tensor


def matrices(model: Any, architecture: Architecture) -> list[Parameter]:
    """The parameters that could be stored in a format, in the order of the model."""
    found = [Parameter(architecture.classify(name), tensor) for name, tensor in model.named_parameters()]
    return [one for one in found if one.tensor.ndim in (2, 3) and one.tensor.dtype in _DTYPES]


@contextmanager
def stored_as(parameters: Sequence[Parameter], format_: Format) -> Iterator[float]:
    """Inside, the parameters hold what they would read as. Gives their relative squared error, all together."""
    originals: list[torch.Tensor] = []
    lost = total = 0.0
    try:
        for one in parameters:
            originals.append(one.tensor.detach().clone())
            for difference, length in _replaced(one.tensor, format_):
                lost, total = lost + difference, total + length
        yield lost / total if total else 0.0
    finally:
        with torch.no_grad():
            for one, original in zip(parameters, originals, strict=False):
                one.tensor.copy_(original)


def _replaced(tensor: torch.Tensor, format_: Format) -> Iterator[tuple[float, float]]:
    """Replace rows piece by piece, and say what each lost and how long it was, squared."""
    rows = tensor.detach().reshape(-1, tensor.shape[-1])
    if rows.data_ptr() != tensor.data_ptr():
        raise ValueError("a parameter whose rows do not lie one after the other")
    dtype = _DTYPES[tensor.dtype]
    block = format_.block_rows
    step = max(block, _PIECE_WEIGHTS // rows.shape[1] // block * block)
    for piece in torch.split(rows, step):
        elements = _elements(piece)
        truth = widen(elements, dtype)
        decoded = format_.decode(format_.encode(elements, dtype), rows.shape[1])
        with torch.no_grad():
            piece.copy_(torch.from_numpy(decoded))
        yield squared(decoded - truth), squared(truth)


def _elements(rows: torch.Tensor) -> NDArray[Any]:
    """As formats take them: BF16 as its bits. A copy: the rows are written over."""
    return as_array(rows.cpu()).copy()
