"""Linear layers with packed weights, those that join several (q, k and v; gate and up) among them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.utils import set_weight_attrs

from tqcli.runtime.products import Activations
from tqcli.runtime.vllm.finished import check_finished, register_parts
from tqcli.runtime.vllm.home import Home
from tqcli.runtime.vllm.part import Part

_QKV = ("q", "k", "v")


class PackedLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """prefix: the layer's name in vLLM."""

    def __init__(self, prefix: str, activations: Activations) -> None:
        self._prefix = prefix
        self._activations = activations

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """A parameter of rows, filled by vLLM's own loaders; no memory is taken yet."""
        del input_size, output_size
        device = torch.get_default_device()
        labels = _labels(output_partition_sizes)
        parts = [Part(label, rows, device) for label, rows in zip(labels, output_partition_sizes, strict=True)]
        home = Home(self._prefix, parts, input_size_per_partition, params_dtype)
        weight = home.parameter(torch.arange(sum(output_partition_sizes), device="cpu"), device)
        layer.register_parameter("weight", weight)
        set_weight_attrs(weight, {"input_dim": 1, "output_dim": 0, **extra_weight_attrs})

    def finish(self, layer: Any) -> None:
        """Once all is loaded. Raises InputError where the weight is not whole."""
        parts = layer.weight.of.finished()
        if all(isinstance(part, Tensor) for part in parts):
            plain = parts[0] if len(parts) == 1 else torch.cat(parts)
            layer.weight = nn.Parameter(plain, requires_grad=False)
            set_weight_attrs(layer.weight, {"input_dim": 1, "output_dim": 0})
            layer.quant_method = UnquantizedLinearMethod()
            return
        register_parts(layer, parts)

    def process_weights_after_loading(self, layer: Any) -> None:
        """All is done by `finish`, which only our loader calls."""
        check_finished(layer, self._prefix)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., columns) -> (..., rows of all parts)."""
        found = [_apply(layer, number, spec, x, self._activations) for number, spec in enumerate(layer.tq_specs)]
        result = found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        return result if bias is None else result + bias


def _apply(layer: Any, number: int, spec: str, hidden: Tensor, activations: str) -> Tensor:
    codes = getattr(layer, f"tq_codes_{number}")
    if not spec:
        return functional.linear(hidden, codes)
    scales = getattr(layer, f"tq_scales_{number}")
    found: Tensor = torch.ops.tqcli.linear(hidden, codes, scales, spec, activations)
    return found


def _labels(sizes: Sequence[int]) -> Sequence[str]:
    if len(sizes) == 1:
        return ("weight",)
    return _QKV if len(sizes) == len(_QKV) else [f"part {number}" for number in range(len(sizes))]
