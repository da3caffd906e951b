"""`compute` as operations of torch: opaque to compilers, which see only what shapes come out.

vLLM compiles by default, on the CPU too. Left out: gradients; nothing here is trained.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tqcli.runtime.products import Activations
from tqcli.runtime.vllm import compute
from tqcli.runtime.vllm.spec import Packed, read_spec

# Between the specs of an expert layer's weights; JSON escapes it.
SPEC_SEPARATOR = "\n"
_ACTIVATIONS: dict[str, Activations] = {"float": "float", "int8": "int8", "int16": "int16"}


@torch.library.custom_op("tqcli::linear", mutates_args=())
def linear(hidden: Tensor, codes: Tensor, scales: Tensor, spec: str, activations: str) -> Tensor:
    """(..., width) -> (..., rows)."""
    return compute.linear(hidden, Packed(codes, scales, read_spec(spec)), _ACTIVATIONS[activations])


@linear.register_fake
def _(hidden: Tensor, codes: Tensor, scales: Tensor, spec: str, activations: str) -> Tensor:
    del codes, spec, activations
    return hidden.new_empty(*hidden.shape[:-1], scales.shape[0])


@torch.library.custom_op("tqcli::embedding", mutates_args=())
def embedding(ids: Tensor, codes: Tensor, scales: Tensor, spec: str, dtype: torch.dtype) -> Tensor:
    """(...) -> (..., columns) of dtype."""
    return compute.embedding(ids, Packed(codes, scales, read_spec(spec)), dtype)


@embedding.register_fake
def _(ids: Tensor, codes: Tensor, scales: Tensor, spec: str, dtype: torch.dtype) -> Tensor:
    del codes, scales
    return ids.new_empty(*ids.shape, read_spec(spec).columns, dtype=dtype)


@torch.library.custom_op("tqcli::experts", mutates_args=())
def experts(
    hidden: Tensor,
    shares: Tensor,
    numbers: Tensor,
    packed: Sequence[Tensor],
    specs: str,
    count: int,
    gate: str,
    activations: str,
) -> Tensor:
    """(tokens, hidden) -> the same. packed: codes and scales of gate, up and down."""
    texts = specs.split(SPEC_SEPARATOR)
    gate_proj, up_proj, down_proj = (
        Packed(codes, scales, read_spec(text))
        for codes, scales, text in zip(packed[::2], packed[1::2], texts, strict=True)
    )
    layer = compute.Experts(count, gate_proj, up_proj, down_proj, gate)
    return compute.experts(hidden, shares, numbers, layer, _ACTIVATIONS[activations])


@experts.register_fake
def _(
    hidden: Tensor,
    shares: Tensor,
    numbers: Tensor,
    packed: Sequence[Tensor],
    specs: str,
    count: int,
    gate: str,
    activations: str,
) -> Tensor:
    del shares, numbers, packed, specs, count, gate, activations
    return torch.empty_like(hidden)
