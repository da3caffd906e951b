"""Modules around packed weights: linear, embedding, and the head that shares a packed embedding."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tqcli.runtime.transformers.hooks import in_place
from tqcli.runtime.transformers.weight import TqWeight

# A tied head is decoded in pieces of about this many weights, 256 MB in bfloat16.
_HEAD_WEIGHTS = 128 << 20


class TqLinear(nn.Module):
    """`nn.Linear` with a packed weight: decode, multiply, forget; or a product of integers, where it says so."""

    def __init__(self, linear: nn.Linear, weight: TqWeight) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = weight
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        with in_place(self.weight):
            if not self.weight.multiplies(hidden):
                return functional.linear(hidden, self.weight.decode(), self.bias)
            result = self.weight.multiply(hidden)
            return result if self.bias is None else result + self.bias

    def unpacked(self) -> nn.Linear:
        """The plain module, with the decoded weight."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight.decode(), requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)


class TqEmbedding(nn.Module):
    """An embedding with a packed table; only the rows that are looked up are decoded."""

    def __init__(self, embedding: nn.Embedding, weight: TqWeight) -> None:
        super().__init__()
        self.num_embeddings = embedding.num_embeddings
        self.embedding_dim = embedding.embedding_dim
        self.padding_idx = embedding.padding_idx
        self.weight = weight
        # Gemma scales by a buffer that is in no file; this is the number it is made from.
        self.scalar_embed_scale: float | None = getattr(embedding, "scalar_embed_scale", None)
        # The plain module, for `unpacked`; not registered, or its names would enter the state dict.
        object.__setattr__(self, "_plain", embedding)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) of token ids -> (..., embedding_dim)."""
        with in_place(self.weight):
            rows = self.weight[ids]
        if self.scalar_embed_scale is None:
            return rows
        return rows * torch.tensor(self.scalar_embed_scale, dtype=rows.dtype, device=rows.device)

    def unpacked(self) -> nn.Embedding:
        """The plain module, with the decoded table."""
        plain: Any = object.__getattribute__(self, "_plain")
        plain.weight = nn.Parameter(self.weight.decode(), requires_grad=False)
        if self.scalar_embed_scale is not None:
            plain.embed_scale = torch.tensor(self.scalar_embed_scale, device=self.weight.device)
        result: nn.Embedding = plain.train(self.training)
        return result


class TqTiedHead(nn.Module):
    """The head of a model that ties it to a packed embedding. It has no tensors of its own, and no names for them."""

    def __init__(self, embedding: TqEmbedding) -> None:
        super().__init__()
        object.__setattr__(self, "_embedding", embedding)

    @property
    def weight(self) -> TqWeight:
        """The embedding's."""
        embedding: TqEmbedding = object.__getattribute__(self, "_embedding")
        return embedding.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., embedding_dim) -> (..., num_embeddings), decoding some rows at a time."""
        weight = self.weight
        rows, columns = weight.shape
        step = max(1, _HEAD_WEIGHTS // columns)
        with in_place(weight):
            if weight.multiplies(hidden):
                return weight.multiply(hidden)
            pieces = [
                functional.linear(hidden, weight.slice_rows(start, min(start + step, rows)))
                for start in range(0, rows, step)
            ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def unpacked(self, table: nn.Parameter) -> nn.Linear:
        """The plain module, sharing the decoded table."""
        rows, columns = table.shape
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        linear.weight = table
        return linear.train(self.training)
