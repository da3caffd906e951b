"""What packed weights are for: linear layers, embeddings and experts, on plain tensors.

On the CPU a few tokens are multiplied as integers, without decoding, where `activations` says so; everything else is
decoded and multiplied by torch. Of experts only those that a token chose are touched. Left out: how vLLM's compiled
graphs see it (`ops`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tqcli.runtime.packed import decode_packed
from tqcli.runtime.products import Activations, can_multiply, multiply
from tqcli.runtime.vllm.spec import Packed

# A weight is decoded in pieces of about this many elements: the head of a large vocabulary would take gigabytes.
_PIECE = 64 << 20
GATES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda hidden: functional.gelu(hidden, approximate="tanh"),
}


@dataclass(frozen=True)
class Experts:
    """Of each weight the rows of one expert come after those of another. gate: a name of `GATES`."""

    count: int
    gate_proj: Packed
    up_proj: Packed
    down_proj: Packed
    gate: str

    @property
    def weights(self) -> tuple[Packed, Packed, Packed]:
        """All three."""
        return self.gate_proj, self.up_proj, self.down_proj


@dataclass(frozen=True)
class _Chosen:
    """Pairs of expert and token, sorted by expert, then by token."""

    experts: Tensor
    tokens: Tensor


def linear(hidden: Tensor, weight: Packed, activations: Activations) -> Tensor:
    """(..., width) -> (..., rows), of the same dtype."""
    flat = _padded(hidden.reshape(-1, hidden.shape[-1]), weight)
    if _multiplies(flat, weight, activations, len(flat)):
        found = _product(flat, weight, activations)
    else:
        step = max(1, _PIECE // weight.spec.columns)
        pieces = [
            functional.linear(flat, _decode(weight, first, min(first + step, weight.rows), flat.dtype))
            for first in range(0, weight.rows, step)
        ]
        found = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    return found.view(*hidden.shape[:-1], weight.rows)


def embedding(ids: Tensor, weight: Packed, dtype: torch.dtype) -> Tensor:
    """(...) numbers of rows -> (..., columns); only those rows are decoded."""
    codes, scales = (one.view(weight.rows, -1)[ids.reshape(-1)] for one in (weight.codes, weight.scales))
    rows = decode_packed(weight.spec.stored_as, codes, scales, weight.spec.columns, dtype, _threads())
    return rows.view(*ids.shape, -1)


def experts(hidden: Tensor, shares: Tensor, numbers: Tensor, layer: Experts, activations: Activations) -> Tensor:
    """(tokens, hidden) -> the same. shares: (tokens, k); numbers: (tokens, k) of experts, -1 for one on another rank.

    Results are added in float32, in the order of experts.
    """
    result = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    sorted_numbers, order = torch.sort(numbers.reshape(-1).long(), stable=True)
    here = sorted_numbers >= 0
    sorted_numbers, order = sorted_numbers[here], order[here]
    chosen = _Chosen(sorted_numbers, order // max(1, numbers.shape[-1]))
    if not len(order):
        return result.to(hidden.dtype)
    average = len(order) / layer.count
    by_products = all(_multiplies(hidden, weight, activations, average) for weight in layer.weights)
    output = _expert_products(hidden, chosen, layer, activations) if by_products else _decoded(hidden, chosen, layer)
    result.index_add_(0, chosen.tokens, output.float() * shares.reshape(-1)[order, None].float())
    return result.to(hidden.dtype)


def _expert_products(hidden: Tensor, chosen: _Chosen, layer: Experts, activations: Activations) -> Tensor:
    """(pairs, hidden), in three products."""
    pairs = chosen.experts, chosen.tokens
    gate, up = (
        _product(_padded(hidden, weight), weight, activations, layer.count, pairs)
        for weight in (layer.gate_proj, layer.up_proj)
    )
    gated = _padded(GATES[layer.gate](gate) * up, layer.down_proj)
    return _product(gated, layer.down_proj, activations, layer.count, (pairs[0], torch.arange(len(gated))))


def _decoded(hidden: Tensor, chosen: _Chosen, layer: Experts) -> Tensor:
    """(pairs, hidden), an expert after the other."""
    counts = torch.bincount(chosen.experts, minlength=layer.count).tolist()
    pieces = []
    begin = 0
    for expert, count in enumerate(counts):
        if not count:
            continue
        given = hidden[chosen.tokens[begin : begin + count]]
        begin += count
        gate, up = (_linear_of(given, weight, expert, layer) for weight in (layer.gate_proj, layer.up_proj))
        pieces.append(_linear_of(GATES[layer.gate](gate) * up, layer.down_proj, expert, layer))
    return torch.cat(pieces)


def _linear_of(hidden: Tensor, weight: Packed, expert: int, layer: Experts) -> Tensor:
    rows = weight.rows // layer.count
    return functional.linear(_padded(hidden, weight), _decode(weight, expert * rows, (expert + 1) * rows, hidden.dtype))


def _multiplies(hidden: Tensor, weight: Packed, activations: Activations, tokens: float) -> bool:
    return activations != "float" and tokens > 0 and can_multiply(weight.spec.stored_as, hidden, tokens)


def _product(
    hidden: Tensor,
    weight: Packed,
    activations: Activations,
    matrices: int = 1,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    return multiply(
        weight.spec.stored_as, weight.codes, weight.scales, hidden, activations, threads=_threads(), matrices=matrices,
        pairs=pairs,
    )  # fmt: skip


def _decode(weight: Packed, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Some rows."""
    codes, scales = (one.view(weight.rows, -1)[first:last] for one in (weight.codes, weight.scales))
    return decode_packed(weight.spec.stored_as, codes, scales, weight.spec.columns, dtype, _threads())


def _padded(hidden: Tensor, weight: Packed) -> Tensor:
    """Zeros for columns that belong to other ranks."""
    spec = weight.spec
    after = spec.columns - spec.lead - spec.width
    return functional.pad(hidden, (spec.lead, after)) if spec.lead or after else hidden


def _threads() -> int:
    return max(1, torch.get_num_threads())
