"""Experts with packed weights: of each layer only the experts that a token chose are decoded, one at a time.

The arithmetic, and its order, are those of transformers' own "eager" experts, so that results are equal to the bit.
Where the weights say so, a few tokens are multiplied as integers instead, without decoding.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tqcli.errors import InputError
from tqcli.formats.native import QUANT_METHOD
from tqcli.runtime.transformers.expert_cache import in_turn
from tqcli.runtime.transformers.hooks import in_place
from tqcli.runtime.transformers.weight import TqWeight

PROJECTIONS = ("gate_up_proj", "down_proj")


def is_packable(module: nn.Module) -> bool:
    """Whether a module is one of transformers' fused experts, of the common kind that runs here."""
    if not hasattr(type(module), "_apply_gate"):
        return False
    weights = [getattr(module, name, None) for name in PROJECTIONS]
    return all(weight is not None and weight.ndim == 3 for weight in weights) and not _peculiarities(module)


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """(tokens, hidden), (tokens, k) of expert numbers and weights -> (tokens, hidden)."""
    peculiar = _peculiarities(self)
    if peculiar:
        raise InputError(f"experts of the kind `{type(self).__name__}` do not run packed", why=peculiar)
    result = torch.zeros_like(hidden_states)
    with in_place(self.gate_up_proj, self.down_proj):
        if _multiply(self, hidden_states, top_k_index):
            return _by_products(self, hidden_states, top_k_index, top_k_weights)
        # In expert parallel, the number after the last means: not here.
        chosen = [expert for expert in torch.unique(top_k_index).tolist() if expert != self.num_experts]
        for expert in in_turn(self.gate_up_proj, chosen):
            position, token = torch.where((top_k_index == expert).T)
            gated = self._apply_gate(functional.linear(hidden_states[token], self.gate_up_proj[expert]))
            output = functional.linear(gated, self.down_proj[expert])
            output = output * top_k_weights[token, position, None]
            result.index_add_(0, token, output.to(result.dtype))
    return result


def _multiply(self: Any, hidden: Tensor, top_k_index: Tensor) -> bool:
    """Whether both weights are packed and to be multiplied as integers."""
    weights = self.gate_up_proj, self.down_proj
    share = top_k_index.shape[-1] / self.num_experts
    return all(isinstance(weight, TqWeight) and weight.multiplies(hidden, share) for weight in weights)


def _by_products(self: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """All experts of all tokens in two calls. A token's results are added in the order of experts, as above."""
    tokens, count = top_k_index.shape
    by_token, places = torch.sort(top_k_index, dim=1)
    experts, order = torch.sort(by_token.view(-1), stable=True)
    # In expert parallel, the number after the last means: not here.
    here = int(torch.searchsorted(experts, self.num_experts))
    pairs = experts[:here], order[:here] // count
    gated = self._apply_gate(self.gate_up_proj.multiply(hidden, pairs))
    output = self.down_proj.multiply(gated, (pairs[0], torch.arange(here)))
    found = hidden.new_zeros(tokens * count, hidden.shape[-1])
    found[order[:here]] = (output * top_k_weights.gather(1, places).view(-1)[order[:here], None]).to(hidden.dtype)
    # An addition for each expert of a token: several times as fast as one `index_add_`.
    result = torch.zeros_like(hidden)
    for one in found.view(tokens, count, -1).unbind(1):
        result += one
    return result


def _peculiarities(module: Any) -> str:
    """What of a module's kind is not done here. The flags came over several 5.x releases."""
    found = []
    if not getattr(module, "has_gate", True):
        found.append("no gate")
    if not getattr(module, "is_concatenated", True):
        found.append("gate and up interleaved")
    found += [flag for flag in ("has_bias", "is_transposed", "has_post_expert_norm") if getattr(module, flag, False)]
    return ", ".join(found)


def use(model: Any, packed: Iterable[str]) -> None:
    """Have the experts of `model` run by `experts_forward`, if any of them are among the packed parameters."""
    if not any(is_packable(model.get_submodule(name.rpartition(".")[0])) for name in packed):
        return
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(type(module), "_apply_gate") and config is not None:
            config._experts_implementation = QUANT_METHOD  # noqa: SLF001  # transformers' own switch


def stop_using(model: Any) -> None:
    """Back to transformers' plain loop over experts."""
    if any(hasattr(type(module), "_apply_gate") for module in model.modules()):
        model.set_experts_implementation("eager")


def install() -> None:
    """Make the function known to transformers under the name of the method."""
    ALL_EXPERTS_FUNCTIONS.register(QUANT_METHOD, experts_forward)
