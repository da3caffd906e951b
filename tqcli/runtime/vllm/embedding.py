"""Embeddings and heads with packed weights. A tied head has the embedding's parameter, and so ends with its parts."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.utils import set_weight_attrs

from tqcli.runtime.vllm.linear import PackedLinearMethod


class PackedEmbeddingMethod(PackedLinearMethod):
    """As a linear layer for a head; looked up by rows for an embedding."""

    def finish(self, layer: Any) -> None:
        """Once all is loaded. Raises InputError where the weight is not whole."""
        parts = layer.weight.of.finished()
        if not isinstance(parts[0], Tensor):
            super().finish(layer)
            layer.tq_dtype = layer.weight.dtype
            return
        layer.weight = nn.Parameter(parts[0], requires_grad=False)
        set_weight_attrs(layer.weight, {"input_dim": 1, "output_dim": 0})
        layer.quant_method = UnquantizedEmbeddingMethod()

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        """(...) numbers of rows -> (..., columns)."""
        found: Tensor = torch.ops.tqcli.embedding(
            input_, layer.tq_codes_0, layer.tq_scales_0, layer.tq_specs[0], layer.tq_dtype
        )
        return found
