"""The native format decoded with NumPy alone: what the runtime is compared with, sharing no code with it."""

import re
from itertools import pairwise
from math import erfc, exp, inf, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.pack import tensors_of

PACKED, NORMS = ".tq_packed", ".tq_norms"


def signs(size: int, seed: int) -> tuple[Any, Any]:
    """The low bit of each output of MT19937, +1 where it is set."""
    words = np.random.RandomState(seed).randint(0, 2**32, size=2 * size, dtype=np.uint64)
    values = np.where(words & np.uint64(1), np.float32(1), np.float32(-1))
    return values[:size], values[size:]


def centroids(bits: int, size: int) -> Any:
    """Two bits: a fixed table. Three and four: 100 rounds of Lloyd's method on the normal distribution."""
    if bits == 2:
        return np.array([-1.51, -0.453, 0.453, 1.51]) / sqrt(size)
    count = 2**bits
    bounds = [_quantile(number / count) for number in range(1, count)]
    levels = [0.0] * count
    for _ in range(100):
        edges = [-inf, *bounds, inf]
        levels = [_mean_between(low, high) for low, high in pairwise(edges)]
        bounds = [(low + high) / 2 for low, high in pairwise(levels)]
    return np.array(sorted(levels)) / sqrt(size)


def decode(packed: Any, norms: Any, columns: int, bits: int, group_size: int, seed: int) -> Any:
    """uint8 and float32 of any layout -> float32 (rows, columns)."""
    codes = packed.reshape(-1, packed.size // norms.size)
    stream = np.unpackbits(codes, axis=1, bitorder="little")[:, : group_size * bits].reshape(-1, group_size, bits)
    index = (stream.astype(np.int64) << np.arange(bits)).sum(-1)
    inward, outward = signs(group_size, seed)
    rotated = centroids(bits, group_size).astype(np.float32)[index] * outward
    values = _hadamard(rotated) * inward * norms.reshape(-1, 1)
    return values.reshape(len(norms), -1)[:, :columns]


def _hadamard(values: Any) -> Any:
    size, step = values.shape[1], 1
    values = values.copy()
    while step < size:
        pairs = values.reshape(len(values), size // (2 * step), 2, step)
        low, high = pairs[:, :, 0].copy(), pairs[:, :, 1].copy()
        pairs[:, :, 0], pairs[:, :, 1] = low + high, low - high
        step *= 2
    return (values / np.float32(sqrt(size))).astype(np.float32)


def _quantile(probability: float) -> float:
    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * erfc(-middle / sqrt(2)) < probability else (low, middle)
    return (low + high) / 2


def _mean_between(low: float, high: float) -> float:
    def density(value: float) -> float:
        return 0.0 if abs(value) == inf else exp(-0.5 * value * value) / sqrt(2 * pi)

    mass = 0.5 * erfc(low / sqrt(2)) if high == inf else 0.5 * (erfc(-high / sqrt(2)) - erfc(-low / sqrt(2)))
    return (density(low) - density(high)) / mass


def reference(source: Path, folder: Path, dtype: Any, group_size: int = 128, seed: int = 42, **groups: int) -> Any:
    """The stock model of `source` with every parameter overwritten by what `folder` holds.

    Bits come from the sizes. groups: group size of the tensors whose name contains the key.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, experts_implementation="eager")
    slots = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = tensors_of(folder)
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.endswith(NORMS):
                continue
            base = name.removesuffix(PACKED)
            slot = _slot(slots, base)
            if name.endswith(PACKED):
                norms = tensors[base + NORMS].numpy()
                size = next((value for key, value in groups.items() if key in base), group_size)
                bits = tensor.numel() * 8 // (norms.size * size)
                tensor = torch.from_numpy(decode(tensor.numpy(), norms, slot.shape[-1], bits, size, seed))
            slot.copy_(tensor.view(slot.shape))
    return model


def _slot(slots: dict[str, Any], name: str) -> Any:
    """The parameter, or the part of a fused one, that a tensor on disk fills."""
    match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj(\.weight)?", name)
    if match is None:
        return slots[name] if name in slots else slots[name + ".weight"]
    experts, number, projection = match[1], int(match[2]), match[3]
    if projection == "down":
        return slots[f"{experts}.down_proj"][number]
    both = slots[f"{experts}.gate_up_proj"][number]
    half = len(both) // 2
    return both[:half] if projection == "gate" else both[half:]
