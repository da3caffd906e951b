"""Sample folders of HLWQ made from a whole tiny model, single weights by hand, and the float values of plain ones."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from support.checkpoints import Tensor, read_file, write_file
from support.hlwq_samples import Layout, Sample, write_sample

from tqcli.checkpoint.reader import Checkpoint, open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.formats.hlwq import Hlwq
from tqcli.readers.find import Contents, read

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_gemma4"
# Small, and three-dimensional without being experts: the published programs do not cut it either.
_NOT_CUT = "model.vision_tower.patch_embedder.position_embedding_table"
# Those that hold all of the model.
WHOLE = ("polar_engine_v4", "v5_notebook", "polar_engine_v5")
Q = "model.layers.0.self_attn.q_proj"
LLAMA: Mapping[str, object] = {"model_type": "llama", "num_hidden_layers": 1}
_WIDTHS = {"I64": 0, "F32": 1, "F16": 2, "BF16": 2, "I8": 3, "U8": 3}
NUMPY = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "I8": np.int8, "U8": np.uint8}


def values_of(folder: Path) -> dict[str, np.ndarray]:
    """Name -> float32 values of every tensor of a plain checkpoint."""
    return {
        name: _widened(dtype, data).reshape(shape)
        for path in sorted(folder.glob("*.safetensors"))
        for name, (dtype, shape, data) in read_file(path).items()
    }


def _widened(dtype: str, data: bytes) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, NUMPY[dtype]).astype(np.float32)


def bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest BF16, as float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def tiny_sample(layout: Layout, folder: Path) -> Sample:
    """The tiny Gemma 4 as `layout`; those that are not whole lack one tensor more than what their programs left out."""
    weights = values_of(TINY)
    if layout not in WHOLE:
        del weights[_NOT_CUT]
    sample = write_sample(layout, folder, weights, json.loads((TINY / "config.json").read_text()))
    for path in sample.folder.glob("*.safetensors"):
        # As safetensors itself orders them: the widest dtypes first.
        tensors = read_file(path)
        write_file(
            path, {name: tensors[name] for name in sorted(tensors, key=lambda one: (_WIDTHS[tensors[one][0]], one))}
        )
    return sample


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(LocalFolder(folder))


def contents(folder: Path) -> Contents:
    return read(opened(folder))


def folder_of(folder: Path, tensors: Mapping[str, Tensor], **files: object) -> Path:
    """A folder of one file and the JSON files given, by their names without `.json`."""
    folder.mkdir()
    write_file(folder / "model.safetensors", tensors)
    for name, value in {"config": LLAMA, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def triple(
    key: str = f"{Q}.weight", *, rows: int = 4, columns: int = 200, numbers: int = 5, **options: object
) -> tuple[dict[str, Tensor], np.ndarray]:
    """The three tensors of one weight, and what they decode to. options: of the format."""
    values = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    stored_as = Hlwq.model_validate(options)
    packed, norms = stored_as.encode(values, "F32")
    meta = stored_as.stored(key, values.shape, "F32")[2].content or b""
    tensors = {
        f"{key}__packed": ("U8", packed.shape, packed.tobytes()),
        f"{key}__norms": ("F16", norms.shape, norms.tobytes()),
        f"{key}__meta": ("I64", (numbers,), meta[: 8 * numbers]),
    }
    return tensors, stored_as.decode((packed, norms), columns)


def dotted(table: np.ndarray, codes: np.ndarray | None = None, part: str = "ct") -> dict[str, Tensor]:
    """A weight as polar_engine calls it, and a bias."""
    codes = np.zeros((4, 128), np.int8) if codes is None else codes
    return {
        f"{Q}.codes": ("I8", codes.shape, codes.tobytes()),
        f"{Q}.norms": ("F16", (4, 1), np.ones((4, 1), np.float16).tobytes()),
        f"{Q}.{part}": ("F32", table.shape, table.tobytes()),
        f"{Q}.bias": ("F32", (4,), bytes(16)),
    }
