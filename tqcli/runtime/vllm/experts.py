"""Routed experts with packed weights, however they lie on disk: one by one, or in one tensor.

Left out: experts with biases, without a gate, or with limits on their activations; they are refused.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.utils import set_weight_attrs
from vllm.platforms import current_platform

from tqcli.errors import InputError
from tqcli.runtime.products import Activations
from tqcli.runtime.vllm.compute import GATES
from tqcli.runtime.vllm.finished import check_finished
from tqcli.runtime.vllm.home import Home
from tqcli.runtime.vllm.ops import SPEC_SEPARATOR
from tqcli.runtime.vllm.part import Part
from tqcli.runtime.vllm.spec import Packed

_PROJECTIONS = ("gate", "up", "down")


class PackedExpertsMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """prefix: the layer's name in vLLM."""

    def __init__(self, moe: Any, prefix: str, activations: Activations) -> None:
        super().__init__(moe)
        self._prefix = prefix
        self._activations = activations

    def create_weights(
        self,
        layer: RoutedExperts,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Two parameters of rows, as plain experts have them; no memory is taken yet.

        Raises InputError for experts that do not run here.
        """
        _check_kind(layer, self._prefix, self.moe)
        device = torch.get_default_device()
        count, inner = num_experts, intermediate_size_per_partition
        gate, up = (Part(label, count * inner, device, count) for label in _PROJECTIONS[:2])
        down = Part(_PROJECTIONS[2], count * hidden_size, device, count)
        w13 = Home(self._prefix, (gate, up), hidden_size, params_dtype)
        w2 = Home(self._prefix, (down,), inner, params_dtype)
        # Rows of gate are numbered before those of up, so that each is in one piece; an expert has some of both.
        rows = torch.arange(count * inner, device="cpu").view(count, inner)
        w13_rows = torch.cat((rows, rows + rows.numel()), dim=1)
        w2_rows = torch.arange(count * hidden_size, device="cpu").view(count, hidden_size)
        for name, home, numbers in (("w13_weight", w13, w13_rows), ("w2_weight", w2, w2_rows)):
            layer.register_parameter(name, home.parameter(numbers, device))
            set_weight_attrs(getattr(layer, name), extra_weight_attrs)

    def finish(self, layer: Any) -> None:
        """Once all is loaded. Raises InputError where a weight is not whole, or some are packed and some are not."""
        gate, up = layer.w13_weight.of.finished()
        (down,) = layer.w2_weight.of.finished()
        packed = [isinstance(part, Packed) for part in (gate, up, down)]
        if any(packed) and not all(packed):
            words = ", ".join(
                f"{name} is {'packed' if one else 'plain'}" for name, one in zip(_PROJECTIONS, packed, strict=True)
            )
            raise InputError(
                f"experts of `{self._prefix}` cannot run in vLLM", why=words, fix="a recipe that packs all"
            )
        if not all(packed):
            _make_plain(layer, gate, up, down)
            return
        for name, part in zip(_PROJECTIONS, (gate, up, down), strict=True):
            layer.register_parameter(f"tq_codes_{name}", nn.Parameter(part.codes, requires_grad=False))
            layer.register_parameter(f"tq_scales_{name}", nn.Parameter(part.scales, requires_grad=False))
        layer.tq_specs = SPEC_SEPARATOR.join(part.spec.text for part in (gate, up, down))
        for name in ("w13_weight", "w2_weight"):
            old = getattr(layer, name)
            setattr(layer, name, nn.Parameter(torch.empty(0, dtype=old.dtype, device=old.device), requires_grad=False))

    def process_weights_after_loading(self, layer: Any) -> None:
        """All is done by `finish`, which only our loader calls."""
        check_finished(layer, self._prefix)

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> None:
        """For vLLM's own kernels, which do not see these weights."""
        del layer

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """(tokens, hidden) -> the same; vLLM adds ranks up."""
        del shared_experts, shared_experts_input
        numbers = topk_ids if layer.expert_map is None else layer.expert_map[topk_ids.long()]
        packed = [getattr(layer, f"tq_{kind}_{name}") for name in _PROJECTIONS for kind in ("codes", "scales")]
        found: Tensor = torch.ops.tqcli.experts(
            x, topk_weights, numbers, packed, layer.tq_specs, layer.local_num_experts, layer.activation.value,
            self._activations,
        )  # fmt: skip
        return found


def _make_plain(layer: Any, gate: Tensor, up: Tensor, down: Tensor) -> None:
    count = layer.local_num_experts
    both = torch.cat([one.view(count, -1, one.shape[-1]) for one in (gate, up)], dim=1)
    layer.w13_weight = nn.Parameter(both, requires_grad=False)
    layer.w2_weight = nn.Parameter(down.view(count, -1, down.shape[-1]), requires_grad=False)
    layer._replace_quant_method(UnquantizedFusedMoEMethod(layer.moe_config))  # noqa: SLF001  # vLLM's own way


def _check_kind(layer: Any, name: str, moe: Any) -> None:
    """Raise InputError for what `compute` does not do."""
    found = []
    if not moe.is_act_and_mul:
        found.append("no gate")
    if moe.has_bias:
        found.append("biases")
    if layer.activation.value not in GATES:
        found.append(f"activation `{layer.activation.value}`")
    if layer.apply_router_weight_on_input:
        found.append("router weights on the input")
    found += [flag for flag in ("swiglu_limit", "swiglu_alpha", "swiglu_beta") if getattr(layer, flag) is not None]
    if found:
        raise InputError(f"experts of `{name}` do not run packed", why=", ".join(found))
    config = get_current_vllm_config_or_none()
    if current_platform.is_cuda() and config is not None and not config.model_config.enforce_eager:
        why = "which experts are decoded depends on tokens, and CUDA graphs are recorded without any"
        raise InputError("packed experts need eager mode on CUDA", why=why, fix="--enforce-eager")
