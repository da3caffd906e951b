"""What a layer has once its weight is whole: parameters of codes and scales, and what they mean as text.

Left out: experts, whose parts have names (`experts`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tqcli.errors import InputError
from tqcli.runtime.vllm.spec import Packed, joined

Finished = Packed | Tensor


def register_parts(layer: Any, parts: Sequence[Finished]) -> None:
    """`tq_codes_0`, `tq_scales_0`, and so on; of a plain part the codes are the weight. `tq_specs` tells which is what.

    Parts side by side that mean the same become one. `weight` stays, empty: models ask for its dtype and device.
    """
    specs = []
    for number, part in enumerate(_merged(parts)):
        tensors = (part.codes, part.scales) if isinstance(part, Packed) else (part,)
        for name, tensor in zip(("codes", "scales"), tensors, strict=False):
            layer.register_parameter(f"tq_{name}_{number}", nn.Parameter(tensor, requires_grad=False))
        specs.append(part.spec.text if isinstance(part, Packed) else "")
    layer.tq_specs = tuple(specs)
    old = layer.weight
    layer.weight = nn.Parameter(torch.empty(0, dtype=old.dtype, device=old.device), requires_grad=False)


def check_finished(layer: Any, name: str) -> None:
    """Raise InputError for a layer that was filled by another loader than ours, that is, by none."""
    if not hasattr(layer, "tq_specs"):
        why = "only vLLM's usual loader reads packed checkpoints"
        raise InputError(f"`{name}` was not loaded", why=why, fix="serve without --load-format")


def _merged(parts: Sequence[Finished]) -> list[Finished]:
    found: list[Finished] = []
    for part in parts:
        last = found[-1] if found else None
        both = joined(last, part) if isinstance(last, Packed) and isinstance(part, Packed) else None
        if both is None:
            found.append(part)
        else:
            found[-1] = both
    return found
