"""Compressing what is compressed already loses twice: refused, with the name of the model to take instead.

Left out: reading such a folder, which `readers` does when it is asked for.
"""

import re
from collections.abc import Mapping
from typing import Any

from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.storage import Storage
from tqcli.errors import InputError
from tqcli.formats.native import SUFFIXES
from tqcli.readers.find import PLAIN, Contents
from tqcli.readers.record import read_tq_config

_SUFFIXES = (*SUFFIXES, ".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".scales", "__packed")
_DTYPES = ("F8_", "F4", "F6_")
_CARD = "README.md"
_CARD_BYTES = 1 << 20
# YAML's forms: on the same line, plain, quoted or in brackets; or an item of a list on the next.
_BASE_MODEL = re.compile(
    r"^base_model:[ \t]*(?:\r?\n[ \t]*-[ \t]*|\[[ \t]*)?[\"']?(?!null\b)([A-Za-z0-9][A-Za-z0-9._/-]{0,95})",
    re.MULTILINE,
)


def refuse_compressed(source: Checkpoint) -> None:
    """Raises InputError where config.json or a tensor says that the weights are compressed."""
    if why := why_compressed(source):
        raise _compressed(source, why)


def refuse_packed(source: Checkpoint, contents: Contents) -> None:
    """Raises InputError where only a reader tells it."""
    if contents.packed:
        raise _compressed(source, f"`{next(iter(contents.packed))}` is")


def _compressed(source: Checkpoint, why: str) -> InputError:
    what = f"`{source.storage.label}` is compressed already"
    return InputError(what, why=why, fix=f"{_name_original(source)}, or --from-quantized")


def refuse_unreadable(source: Checkpoint, contents: Contents) -> None:
    """Raises InputError where the weights are compressed in a way that no reader here knows.

    Copied as they are, such bytes would become a plain checkpoint of nonsense.
    """
    if contents.layout == PLAIN and (why := why_compressed(source)):
        what = f"`{source.storage.label}` is compressed in a way that is not read here"
        raise InputError(what, why=why, fix=_name_original(source))


def _name_original(source: Checkpoint) -> str:
    base = base_model(source)
    return f"name the original{f', `{base}`' if base else ' BF16 checkpoint'}"


def why_compressed(source: Checkpoint) -> str:
    """What shows that a checkpoint is compressed; empty for a plain one."""
    text = source.config.get("text_config")
    sections = (source.config, text if isinstance(text, Mapping) else {})
    for section in sections:
        method = section.get("quantization_config") or section.get("quantization")
        if method:
            said = method.get("quant_method") if isinstance(method, Mapping) else None
            # MLX's section has another name, which no other has, and names no method.
            unnamed = "MLX" if section.get("quantization") else "unknown method"
            return f"`quantization_config` in config.json: {said or unnamed}"
    for tensor in source.tensors.values():
        if tensor.name.endswith(_SUFFIXES) or tensor.dtype.startswith(_DTYPES):
            return f"`{tensor.name}` is {tensor.dtype}"
    return ""


def base_model(source: Checkpoint) -> str:
    """What the checkpoint was made from, as its record or its model card says; empty where they do not."""
    said: Any = read_tq_config(source).get("original_model")
    if isinstance(said, str) and said:
        return said[:96]
    found = _BASE_MODEL.search(_front_matter(source.storage))
    return found[1] if found else ""


def _front_matter(storage: Storage) -> str:
    size = storage.files().get(_CARD, 0)
    text = storage.read(_CARD, 0, min(size, _CARD_BYTES)).decode(errors="replace") if size else ""
    return text.split("\n---", 1)[0] if text.startswith("---") else ""
