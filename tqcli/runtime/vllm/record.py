"""tq_config.json, beside the weights: our folders list their tensors there, published ones say how they are packed.

Left out: what follows from it (`contents`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from tqcli.checkpoint.json_object import parse_object
from tqcli.errors import InputError
from tqcli.formats.native import EXTENDED_FORMAT, NATIVE_FORMAT, TQ_CONFIG_NAME
from tqcli.runtime.headers import find_packed
from tqcli.runtime.transformers.source import section_of

# A map of every tensor of the largest models takes a few MB.
_MAX_BYTES = 64 << 20
_NATIVE = "native"


def read_record(model: str, revision: str | None) -> Mapping[str, Any]:
    """Of a folder or a Hub id; empty where there is none. Raises InputError for one that cannot be read."""
    path = _path(model, revision)
    if path is None:
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"`{path}` is larger than {_MAX_BYTES} bytes")
    record = parse_object(path.read_bytes(), TQ_CONFIG_NAME)
    return record if record.get("layout", _NATIVE) == _NATIVE else {}


def published_section(record: Mapping[str, Any], model: str) -> dict[str, Any] | None:
    """The `quantization_config` that a record stands for; None where nothing is packed."""
    if record.get("format") not in (NATIVE_FORMAT, EXTENDED_FORMAT):
        return None
    folder = Path(model)
    if folder.is_dir() and find_packed(sorted(folder.glob("*.safetensors"))) is None:
        return None
    return section_of(record)


def _path(model: str, revision: str | None) -> Path | None:
    if Path(model).is_dir():
        path = Path(model, TQ_CONFIG_NAME)
        return path if path.is_file() else None
    try:
        found = cached_file(model, TQ_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:
        # Offline, gated or no such repository: whoever fetches the weights reports it, and better.
        return None
    return Path(found) if found else None
