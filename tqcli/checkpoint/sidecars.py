"""The files of a checkpoint that hold no weights: tokenizer, chat template, processor, licence. Copied byte for byte.

Left out, with a reason each: the files that are written anew, hidden files, and weights in another form.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from tqcli.checkpoint.storage import Storage
from tqcli.checkpoint.writer import PARTIAL_SUFFIX, disk_errors

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"

_CHUNK_BYTES = 8 << 20
_OF_ANOTHER_CONVERSION = (
    "tq_config.json",
    "tq_recipe.toml",
    "tq_results.jsonl",
    "hlwq_config.json",
    "polar_config.json",
)
_OTHER_WEIGHTS = (
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".gguf",
    ".ggml",
    ".onnx",
    ".msgpack",
    ".h5",
    ".npz",
    ".tflite",
)


def sidecars(storage: Storage) -> tuple[list[str], dict[str, str]]:
    """The names to copy, and name -> reason of those left out."""
    copied, left_out = [], {}
    for name in storage.files():
        reason = _reason_to_leave(name)
        if reason is None:
            copied.append(name)
        elif reason:
            left_out[name] = reason
    return copied, left_out


def _reason_to_leave(name: str) -> str | None:
    """None: copy it. Empty: it is written anew. Otherwise why it stays behind."""
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return "weights in a subfolder" if "/" in name else ""
    if name == CONFIG_NAME:
        return ""
    if name in _OF_ANOTHER_CONVERSION:
        return "it tells of another conversion"
    lower = name.lower()
    if lower.endswith(_OTHER_WEIGHTS):
        return "weights in another form"
    if lower.endswith((".bin.index.json", PARTIAL_SUFFIX)):
        return "index of weights in another form" if lower.endswith(".json") else "unfinished"
    return None


def copy_sidecar(storage: Storage, name: str, folder: Path) -> None:
    """Copy one file under its own relative name, whole or not at all."""
    target = folder / name
    temporary = target.with_name(target.name + PARTIAL_SUFFIX)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for piece in _pieces(storage, name):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


def same_bytes(storage: Storage, name: str, path: Path) -> bool:
    """Whether the copy equals the original."""
    if not path.is_file() or path.stat().st_size != storage.files()[name]:
        return False
    with path.open("rb") as file:
        return all(file.read(len(piece)) == piece for piece in _pieces(storage, name))


def _pieces(storage: Storage, name: str) -> Iterator[bytes]:
    size = storage.files()[name]
    for begin in range(0, size, _CHUNK_BYTES):
        yield storage.read(name, begin, min(_CHUNK_BYTES, size - begin))
