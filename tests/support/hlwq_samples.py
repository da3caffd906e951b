"""Small folders in every published layout of HLWQ, made from a few weights, with what a reader must find in them.

The layouts, oldest first:

    polar_engine_v4   `M.codes .norms .ct_scaled`, widths from 3 to 6 bits, numbered shards, polar_config.json
    v5_notebook       `M.codes .norms .ct`, a byte an index, numbered shards, polar_config.json
    polar_engine_v5   as v4, with 5-bit indices packed
    unpacked          `M__codes __norms`, a byte an index, no table, dots in names replaced
    multi             `N__packed __norms __meta` of 4 numbers, dots in names replaced; a folder PQ5 without config.json
    hlwq              `N__packed __norms __meta` of 5 numbers, dots kept; experts one by one; nothing else in the file
    hlwq_underscored  the same with the dots in names replaced

M is a weight's name without `.weight`, N its full name. No network, no model: the indices come from our own encoder.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from support.checkpoints import Tensor, to_bytes, write_file
from tq_kernels.hlwq_reference import unpack

from tqcli.codec.hlwq_tables import Table, levels
from tqcli.formats.hlwq import Hlwq

Layout = Literal["polar_engine_v4", "v5_notebook", "polar_engine_v5", "unpacked", "multi", "hlwq", "hlwq_underscored"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
# By the fragments of names that stood in the program's own rules; 5 bits for all others.
MIXED_BITS = {"lm_head": 6, "o_proj": 6, "gate_up_proj": 3, "gate_proj": 3, "up_proj": 3, "down_proj": 4}


@dataclass(frozen=True)
class Sample:
    """folder: where the weights lie. decoded: weight -> float32 values that a reader must give, under original names.

    plain: weight -> values kept in the folder. missing: weights that only the base model has.
    """

    folder: Path
    decoded: dict[str, np.ndarray]
    plain: dict[str, np.ndarray]
    missing: tuple[str, ...]


def write_sample(
    layout: Layout, folder: Path, weights: Mapping[str, np.ndarray], config: Mapping[str, object]
) -> Sample:
    """Write `weights`, float32 by full name, as `layout`; config: the original config.json."""
    if layout in ("hlwq", "hlwq_underscored"):
        return _write_hlwq(folder, weights, config, underscored=layout == "hlwq_underscored")
    if layout in ("multi", "unpacked"):
        return _write_apart(layout, folder, weights, config)
    return _write_polar(layout, folder, weights, config)


def quantised(name: str, values: np.ndarray) -> bool:
    """The published rule for matrices."""
    kept = ("norm", "A_log", ".D", "dt_bias", "conv1d", "router")
    return values.ndim == 2 and values.size >= 256 and not any(one in name for one in kept)


def _encoded(values: np.ndarray, bits: int, table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices uint8 (rows, padded columns), norms float16 (rows, blocks), and what they decode to."""
    hlwq = Hlwq.model_validate({"bits": bits, "table": table})
    packed, norms = hlwq.encode(np.ascontiguousarray(values, dtype=np.float32), "F32")
    indices = unpack(packed, bits, norms.size * 128).reshape(len(norms), -1)
    return indices, norms, hlwq.decode((packed, norms), values.shape[1])


def _tensor(values: np.ndarray, dtype: str) -> Tensor:
    return dtype, values.shape, to_bytes(values, dtype) if dtype in ("F16", "BF16", "F32") else values.tobytes()


def _write_polar(layout: Layout, folder: Path, weights: Mapping[str, np.ndarray], config: object) -> Sample:
    sample = Sample(folder, {}, {}, ())
    notebook = layout == "v5_notebook"
    table: Table = "truncated" if notebook else "unbounded"
    tensors: dict[str, Tensor] = {}
    layers: dict[str, dict[str, object]] = {}
    for name, values in weights.items():
        if not quantised(name, values):
            sample.plain[name] = values.astype(np.float16).astype(np.float32)
            tensors[name] = _tensor(values, "F16")
            continue
        bits = 5 if notebook else _mixed_bits(name)
        indices, norms, sample.decoded[name] = _encoded(values, bits, table)
        module = name.removesuffix(".weight")
        packing = _packing(layout, bits)
        tensors[f"{module}.codes"] = _PACKERS[packing](indices)
        tensors[f"{module}.norms"] = _tensor(norms, "F16")
        if notebook:
            tensors[f"{module}.ct"] = _tensor(levels(table, bits), "F32")
        else:
            tensors[f"{module}.ct_scaled"] = _tensor(levels(table, bits) / np.float32(np.sqrt(128)), "F32")
        layers[module] = _layer(values, bits, packing)
    folder.mkdir(parents=True)
    _write_shards(folder, tensors)
    polar = {
        "format": "polar_engine_v4" if layout == "polar_engine_v4" else "polar_engine_v5",
        "quantization": "polarengine",
        "block_size": 128,
        "bit_assignment": MIXED_BITS,
        "layers": layers,
    }
    _write_json(folder / "polar_config.json", polar)
    _write_json(folder / "config.json", config)
    return sample


def _mixed_bits(name: str) -> int:
    return next((bits for part, bits in MIXED_BITS.items() if part in name), 5)


def _packing(layout: Layout, bits: int) -> str:
    if layout == "v5_notebook":
        return "bytes"
    if bits <= 4:
        return "half-blocks"
    return "lowest-first" if bits == 5 and layout == "polar_engine_v5" else "bytes"


def _layer(values: np.ndarray, bits: int, packing: str) -> dict[str, object]:
    rows, columns = values.shape
    blocks = -(-columns // 128)
    flag = {"packed_q5": True} if packing == "lowest-first" else {}
    return {
        "in_features": columns,
        "out_features": rows,
        "in_features_padded": blocks * 128,
        "n_blocks": blocks,
        "bits": bits,
        "block_size": 128,
        "packed": packing == "half-blocks",
        "scale_dtype": "float16",
        **flag,
    }


def _half_blocks(indices: np.ndarray) -> Tensor:
    pairs = indices.reshape(len(indices), -1, 2, 64)
    return _tensor((pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(indices), -1), "U8")


def _lowest_first(indices: np.ndarray) -> Tensor:
    every_bit = np.unpackbits(indices.reshape(-1, 1), axis=1, bitorder="little")[:, :5]
    return _tensor(np.packbits(every_bit, bitorder="little").reshape(len(indices), -1), "U8")


_PACKERS: Mapping[str, Callable[[np.ndarray], Tensor]] = {
    "bytes": lambda indices: ("I8", indices.shape, indices.tobytes()),
    "half-blocks": _half_blocks,
    "lowest-first": _lowest_first,
}


def _write_apart(layout: Layout, folder: Path, weights: Mapping[str, np.ndarray], config: object) -> Sample:
    """Codes in one file, the rest in another; the folder of one width has no config.json of its own."""
    inside = folder / "PQ5"
    inside.mkdir(parents=True)
    sample = Sample(inside, {}, {}, ())
    codes: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, values in weights.items():
        if not quantised(name, values) or "embed" in name:
            rest[name] = _tensor(values, "BF16")
            sample.plain[name] = (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
        elif layout == "multi":
            key = name.replace(".", "__")
            codes.update(_triple(key, values, 4))
            sample.decoded[name] = _encoded(values, 5, "truncated")[2]
        else:
            key = name.removesuffix(".weight").replace(".", "__")
            indices, norms, sample.decoded[name] = _encoded(values, 5, "truncated")
            codes[f"{key}__codes"] = _tensor(indices, "U8")
            codes[f"{key}__norms"] = _tensor(norms, "F16")
    write_file(inside / "codes.safetensors", codes)
    write_file(inside / "bf16.safetensors", rest)
    _write_json(folder / "config.json", config)
    return sample


def _triple(key: str, values: np.ndarray, numbers: int) -> dict[str, Tensor]:
    hlwq = Hlwq()
    packed, norms = hlwq.encode(np.ascontiguousarray(values, dtype=np.float32), "F32")
    content = hlwq.stored(key, values.shape, "F32")[2].content or b""
    return {
        f"{key}__packed": _tensor(packed, "U8"),
        f"{key}__norms": _tensor(norms, "F16"),
        f"{key}__meta": ("I64", (numbers,), content[: 8 * numbers]),
    }


def _write_hlwq(
    folder: Path, weights: Mapping[str, np.ndarray], config: Mapping[str, object], *, underscored: bool
) -> Sample:
    decoded: dict[str, np.ndarray] = {}
    missing: list[str] = []
    tensors: dict[str, Tensor] = {}
    for name, values in weights.items():
        if values.ndim < 3 and not quantised(name, values):
            missing.append(name)
            continue
        parts = []
        for key, matrix in _matrices(name, values):
            tensors.update(_triple(key.replace(".", "__") if underscored else key, matrix, 5))
            parts.append(_encoded(matrix, 5, "truncated")[2])
        decoded[name] = np.stack(parts) if values.ndim == 3 else parts[0]
    folder.mkdir(parents=True)
    write_file(folder / "polar_state.safetensors", tensors)
    _write_json(folder / "hlwq_config.json", {"method": "hlwq", "bits": 5, "block_size": 128})
    section = {"quant_method": "polarengine", "format": "hlwq-q5", "block_size": 128}
    _write_json(folder / "config.json", {**config, "quantization_config": section})
    return Sample(folder, decoded, {}, tuple(missing))


def _matrices(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if values.ndim == 2:
        yield name, values
        return
    for expert, matrix in enumerate(values):
        yield f"{name}_e{expert}", matrix


def _write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Two shards and an index; a weight's three tensors may lie in both."""
    names = list(tensors)
    half = -(-len(names) // 2)
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        write_file(folder / file, {name: tensors[name] for name in part})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(len(data) for _, _, data in tensors.values())}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))
