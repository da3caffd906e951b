"""Write a packed checkpoint from a plain one, straight from the format's description; the real converter does more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from tq_kernels.tensors import encode_tensor

from tqcli.codec.turboquant import tables

GUARD = "REQUIRES__pip_install_tqcli__then__import_tqcli.safetensors"
Settings = dict[str, Any]

KEPT = ("norm", "embed", "lm_head", "router", "mlp.gate.", "vision", "scalar", "bias", "per_expert", "std_")


def is_packed_by_default(name: str, shape: list[int]) -> bool:
    return len(shape) >= 2 and not any(part in name for part in KEPT)


def is_packed_by_the_peer(name: str, shape: list[int]) -> bool:
    return len(shape) >= 2 and not any(part in name for part in ("lm_head", "embed", "norm", "head"))


def tensors_of(folder: Path) -> dict[str, Any]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            found.update({name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118
    return found


def pack_tensors(
    source: Path,
    bits: int = 3,
    group_size: int = 128,
    seed: int = 42,
    scale: str = "norm",
    packs: Callable[[str, list[int]], bool] = is_packed_by_default,
    overrides: dict[str, Settings] | None = None,
    kept_dtype: Any = None,
) -> dict[str, Any]:
    """The tensors of the packed checkpoint."""
    result = {}
    for name, tensor in tensors_of(source).items():
        if packs(name, list(tensor.shape)):
            chosen = {"bits": bits, "group_size": group_size, "seed": seed, **(overrides or {}).get(name, {})}
            codes, norms = encode_tensor(tensor.contiguous(), tables(**chosen), scale=scale)
            result[name + ".tq_packed"], result[name + ".tq_norms"] = codes, norms
        else:
            result[name] = tensor if kept_dtype is None else tensor.to(kept_dtype)
    return result


def write(
    source: Path,
    folder: Path,
    tensors: dict[str, Any],
    shards: int = 3,
    section: Settings | None = None,
    tq_config: Settings | None = None,
    guard: bool = True,
) -> Path:
    """Tensors in shards, the source's other files, and the two configurations."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and "safetensors" not in path.name:
            shutil.copy(path, folder)
    write_shards(folder, tensors, shards)
    config = json.loads((source / "config.json").read_text())
    if section is not None:
        config["quantization_config"] = section
        if guard:
            config["transformers_weights"] = GUARD
    (folder / "config.json").write_text(json.dumps(config))
    if tq_config is not None:
        (folder / "tq_config.json").write_text(json.dumps(tq_config))
    return folder


def write_shards(folder: Path, tensors: dict[str, Any], shards: int) -> None:
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names = sorted(tensors)
    files = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    weight_map = {name: files[index % shards] for index, name in enumerate(names)}
    for file in files:
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def our_section(
    bits: int = 3, group_size: int = 128, seed: int = 42, tensors: dict[str, Settings] | None = None
) -> Settings:
    """As the converter writes it into config.json."""
    return {
        "quant_method": "turboquant", "format_version": 1, "bits": bits, "group_size": group_size, "seed": seed,
        "tensors": tensors or {}, "tool": "tqcli 0.1.0",
    }  # fmt: skip


def published_tq_config(bits: int = 3, group_size: int = 128) -> Settings:
    """As the published checkpoints have it."""
    return {
        "format": "tq3_native", "bits": bits, "group_size": group_size, "quantizer_seed": 42, "compressed_layers": 1,
        "original_model": "some/model",
    }  # fmt: skip
