"""Tiny checkpoints with the names of real models, written without transformers: headers by hand, weights by NumPy."""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

Tensor = tuple[str, tuple[int, ...], bytes]

_NUMPY = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "U8": np.uint8, "F64": np.float64}
SIDE_FILES = {
    "tokenizer.json": b'{"version": "1.0", "model": {"type": "BPE"}}\n',
    "tokenizer_config.json": b'{ "chat_template" : null }',
    "chat_template.jinja": "{% for m in messages %}{{ m }}{% endfor %}\né\r\n".encode(),
    "generation_config.json": b'{"do_sample": true}',
    "README.md": b"# A model\n",
    "figures/loss.svg": b"<svg/>",
    "empty.txt": b"",
}


def to_bytes(values: np.ndarray, dtype: str) -> bytes:
    """Values as the little-endian bytes of a safetensors dtype; BF16 by cutting float32."""
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(_NUMPY[dtype]).tobytes()


def tensor(shape: tuple[int, ...], dtype: str = "BF16", seed: int = 0, scale: float = 0.02) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(prod(shape)) * scale
    return dtype, shape, to_bytes(values, dtype)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def read_file(path: Path) -> dict[str, Tensor]:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    del header["__metadata__"]
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], tuple(entry["shape"]), raw[start + begin : start + end])
    return tensors


def write_checkpoint(
    folder: Path,
    config: Mapping[str, object],
    tensors: Mapping[str, Tensor],
    *,
    shards: int = 1,
    index: bool = True,
    side_files: Mapping[str, bytes] = SIDE_FILES,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    names = list(tensors)
    parts = [names[i * len(names) // shards : (i + 1) * len(names) // shards] for i in range(shards)]
    files = [_shard_name(i, shards) for i in range(shards)]
    for file, part in zip(files, parts, strict=True):
        write_file(folder / file, {name: tensors[name] for name in part})
    if index and shards > 1:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
    for name, data in side_files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def rewrite(folder: Path, changes: Mapping[str, Tensor], drop: Sequence[str] = ()) -> None:
    """Change, add or drop tensors of a checkpoint of one shard."""
    tensors = read_file(folder / "model.safetensors") | dict(changes)
    write_file(folder / "model.safetensors", {name: one for name, one in tensors.items() if name not in drop})


GEMMA_CONFIG: dict[str, object] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-06,
    "zz_unknown_key": {"é": [1, 2.5, None, "x"]},
    "text_config": {"model_type": "gemma4_text", "num_hidden_layers": 2, "quantization_config": None},
}


def gemma_tensors(layers: int = 2, dtype: str = "BF16") -> dict[str, Tensor]:
    """Fused 3-D experts, a router, a vision tower, norms; the second layer has no v_proj, as in the real model."""
    shapes: dict[str, tuple[int, ...]] = {"model.language_model.embed_tokens.weight": (64, 128)}
    for layer in range(layers):
        prefix = f"model.language_model.layers.{layer}."
        shapes |= {
            prefix + "layer_scalar": (1,),
            prefix + "input_layernorm.weight": (128,),
            prefix + "self_attn.q_proj.weight": (128, 128),
            prefix + "self_attn.k_proj.weight": (64, 128),
            **({prefix + "self_attn.v_proj.weight": (64, 128)} if layer % 2 == 0 else {}),
            prefix + "self_attn.o_proj.weight": (128, 128),
            prefix + "self_attn.q_norm.weight": (32,),
            prefix + "mlp.gate_proj.weight": (160, 128),
            prefix + "mlp.up_proj.weight": (160, 128),
            prefix + "mlp.down_proj.weight": (128, 160),
            prefix + "router.proj.weight": (4, 128),
            prefix + "router.scale": (128,),
            prefix + "experts.gate_up_proj": (4, 192, 128),
            prefix + "experts.down_proj": (4, 128, 96),
        }
    shapes |= {
        "model.language_model.norm.weight": (128,),
        "model.vision_tower.patch_embedder.input_proj.weight": (64, 48),
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight": (64, 64),
        "model.embed_vision.embedding_projection.weight": (128, 64),
    }
    return _random(shapes, dtype)


def qwen_tensors(layers: int = 1, experts: int = 3, dtype: str = "F32") -> dict[str, Tensor]:
    """An expert is three matrices of its own; the head is not tied."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, 128), "lm_head.weight": (32, 128)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{one}_proj.weight": (128, 128) for one in "qkvo"}
        shapes |= {prefix + "input_layernorm.weight": (128,), prefix + "mlp.gate.weight": (experts, 128)}
        for expert in range(experts):
            inside = f"{prefix}mlp.experts.{expert}."
            shapes |= {inside + "gate_proj.weight": (64, 128), inside + "up_proj.weight": (64, 128)}
            shapes |= {inside + "down_proj.weight": (128, 64)}
    return _random(shapes, dtype)


QWEN_CONFIG: dict[str, object] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 1,
    "quantization_config": None,
}


def _random(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, Tensor]:
    return {name: tensor(shape, dtype, seed) for seed, (name, shape) in enumerate(shapes.items())}


def gemma(folder: Path, *, dtype: str = "BF16", shards: int = 1, index: bool = True, layers: int = 2) -> Path:
    config = GEMMA_CONFIG | {"text_config": {**GEMMA_CONFIG["text_config"], "num_hidden_layers": layers}}
    return write_checkpoint(folder, config, gemma_tensors(layers, dtype), shards=shards, index=index)


def qwen(folder: Path, *, dtype: str = "F32", shards: int = 1, index: bool = True) -> Path:
    return write_checkpoint(folder, QWEN_CONFIG, qwen_tensors(dtype=dtype), shards=shards, index=index)


def names_of(folder: Path) -> Iterable[str]:
    """Every file below a folder, hidden ones too, by relative name."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
