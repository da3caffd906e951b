"""Checkpoints with weights in all native formats at once, and the stock model with what they decode to.

Decoding is done here a second time, with NumPy and from the pages of the formats; it shares no code with the runtime.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import pack, plain_decode

from tqcli.formats.native import PAIRS
from tqcli.formats.native_section import NativeFormat, codebooks, entry, section
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform

# The first that is in a name says the format; None keeps the weight plain. A fused parameter has one format.
RULES: tuple[tuple[str, NativeFormat | None], ...] = (
    ("norm", None),
    ("position_embedding", None),
    ("embed_tokens", Uniform(bits=8)),
    ("lm_head", Uniform(bits=8, group_size=32)),
    ("layers.0.mlp.gate.", Trellis(bits=4)),
    ("layers.1.mlp.gate.", Uniform(bits=8)),
    ("router", Uniform(bits=8, group_size=64)),
    ("vision", Trellis(bits=4)),
    ("gate_up_proj", Trellis(bits=3, seed=7)),
    ("layers.0.mlp.experts.", Trellis(bits=2)),
    ("layers.1.mlp.experts.", Uniform(bits=4, group_size=32)),
    ("experts.down_proj", Uniform(bits=4)),
    ("q_proj", Trellis(bits=3)),
    ("k_proj", Tq(bits=4, group_size=64)),
    ("v_proj", Tq(bits=3)),
    ("o_proj", Trellis(bits=3, rotation="none")),
    ("down_proj", Trellis(bits=2, rotation="none")),
    ("gate_proj", Trellis(bits=4, seed=3)),
    ("up_proj", Uniform(bits=4)),
)
DEFAULT = Trellis(bits=3)

Formats = dict[str, NativeFormat]


def choose(name: str, shape: tuple[int, ...]) -> NativeFormat | None:
    """The format of a weight."""
    if len(shape) < 2:
        return None
    return next((stored_as for part, stored_as in RULES if part in name), None)


def pack_tensors(
    source: Path, chosen: Callable[[str, tuple[int, ...]], NativeFormat | None] = choose
) -> tuple[dict[str, Any], Formats]:
    """The tensors of the packed checkpoint, and the format of each packed weight."""
    tensors: dict[str, Any] = {}
    formats: Formats = {}
    for name, tensor in pack.tensors_of(source).items():
        stored_as = chosen(name, tuple(tensor.shape))
        if stored_as is None:
            tensors[name] = tensor
            continue
        formats[name] = stored_as
        matrix = tensor.contiguous().reshape(-1, tensor.shape[-1]).view(torch.uint16).numpy()
        for ending, part in zip(PAIRS[stored_as.format], stored_as.encode(matrix, "BF16"), strict=True):
            tensors[name + ending] = torch.from_numpy(part)
    return tensors, formats


def write(
    source: Path, folder: Path, tensors: dict[str, Any], formats: Formats, default: NativeFormat = DEFAULT
) -> Path:
    """As the converter writes it. default: the format in config.json of weights that are not listed there."""
    return pack.write(source, folder, tensors, section=section(default, formats), tq_config=record(formats))


def record(formats: Formats) -> dict[str, Any]:
    """tq_config.json, as far as a reader looks at it."""
    return {
        "format": "tq_native", "format_version": 2, "codebooks": codebooks(formats.values()), "layout": "native",
        "tensors": {name: entry(stored_as) for name, stored_as in formats.items()},
    }  # fmt: skip


def reference(source: Path, tensors: dict[str, Any], formats: Formats, dtype: Any) -> Any:
    """The stock model of `source` with every parameter overwritten by what the tensors say."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, experts_implementation="eager")
    slots = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    endings = tuple(ending for pair in PAIRS.values() for ending in pair)
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}
    with torch.no_grad():
        for name, tensor in plain.items():
            plain_decode._slot(slots, name).copy_(tensor)
        for name, stored_as in formats.items():
            slot = plain_decode._slot(slots, name)
            parts = [tensors[name + ending].numpy() for ending in PAIRS[stored_as.format]]
            slot.copy_(torch.from_numpy(decode(stored_as, *parts, slot.shape[-1])).view(slot.shape))
    return model


def decode(stored_as: NativeFormat, codes: Any, scales: Any, columns: int) -> Any:
    """float32 (rows, columns)."""
    if isinstance(stored_as, Trellis):
        return decode_trellis(stored_as, codes, scales, columns)
    if isinstance(stored_as, Uniform):
        return decode_uniform(stored_as, codes, scales, columns)
    return plain_decode.decode(codes, scales, columns, stored_as.bits, stored_as.group_size, stored_as.seed)


def decode_uniform(stored_as: Uniform, codes: Any, scales: Any, columns: int) -> Any:
    numbers = codes.astype(np.int32)
    if stored_as.bits == 4:
        numbers = np.stack([numbers % 16, numbers // 16], -1).reshape(len(codes), -1)[:, :columns]
        numbers = np.where(numbers > 7, numbers - 16, numbers)
    group = np.arange(columns) // stored_as.group_size
    return numbers.astype(np.float32) * scales.astype(np.float32)[:, group]


def decode_trellis(stored_as: Trellis, codes: Any, meta: Any, columns: int) -> Any:
    bits = stored_as.bits
    levels = np.frombuffer(bytes.fromhex(stored_as.levels), np.int8).astype(np.float64)
    signs = plain_decode.signs(128, stored_as.seed)[0]
    result = np.empty((len(codes), columns), np.float32)
    start = 0
    for group, size in enumerate(_group_sizes(columns)):
        field = np.ascontiguousarray(meta[:, group : group + 1]).view(np.uint8)
        packed = codes[:, start * bits // 8 : (start + size) * bits // 8]
        stream = np.unpackbits(np.concatenate([field, packed], 1), axis=1, bitorder="little").astype(np.int64)
        places = 8 + bits + bits * np.arange(size)[:, None] + np.arange(8)
        values = levels[(stream[:, places] << np.arange(8)).sum(-1)]
        scale = _scale(stream[:, : 8 + bits], bits)
        if stored_as.rotation == "none":
            found = values.astype(np.float32) * scale
        else:
            factor = scale * np.float32(1 / np.sqrt(np.float64(size)))
            found = (values @ _matrix(size)).astype(np.float32) * factor * signs[:size]
        result[:, start : start + size] = found
        start += size
    return result


def _scale(stream: Any, bits: int) -> Any:
    """float32 (rows, 1) from the bits of the field, the lowest first."""
    field = (stream << np.arange(8 + bits)).sum(1, keepdims=True)
    exponent, mantissa = field >> (3 + bits), field & ((1 << (3 + bits)) - 1)
    fraction = mantissa / 2.0 ** (3 + bits)
    value = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - 15.0), fraction * 2.0**-14)
    return (value * 2.0**-16).astype(np.float32)


def _matrix(size: int) -> Any:
    """Hadamard's, in natural order."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _group_sizes(columns: int) -> list[int]:
    return [128] * (columns // 128) + [size for size in (64, 32, 16) if columns % 128 & size]
