"""Is the checkpoint that transformers is about to load a packed one? Say so before it decides how to load.

Ours say it in config.json. The published TQ3 checkpoints only have a tq_config.json beside it, so each load looks
for one: a file test for a folder, one look-up for a Hub id. Without this they would load as random weights.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from tqcli.checkpoint.json_object import parse_object
from tqcli.errors import InputError
from tqcli.formats.native import EXTENDED_FORMAT, GUARD, NATIVE_FORMAT, QUANT_METHOD, TQ_CONFIG_NAME, USUAL_SEED
from tqcli.formats.native_section import CODEBOOKS
from tqcli.runtime.headers import find_packed

# A map of every tensor of the largest models takes a few MB.
_MAX_BYTES = 64 << 20
# Other layouts have a tq_config.json too; what packs their weights, if anything, is in config.json.
_NATIVE = "native"
_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "proxies",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
)


@dataclass
class _Load:
    """One running `from_pretrained`."""

    name: Any
    hub: Mapping[str, Any]
    skip: bool
    claimed: bool = field(default=False)


_current: ContextVar[_Load | None] = ContextVar("tqcli_load", default=None)


@contextmanager
def loading(name: Any, options: Mapping[str, Any]) -> Iterator[None]:
    """Remember what is being loaded, and from where, while `from_pretrained` runs."""
    hub = {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}
    token = _current.set(_Load(name, hub, skip=bool(options.get("gguf_file"))))
    try:
        yield
    finally:
        _current.reset(token)


def claim(config: Any) -> None:
    """Give `config` its `quantization_config` if the checkpoint is packed, and take off the guard.

    Raises InputError for a tq_config.json that cannot be read, is not of a kind that we know or has other codebooks.
    """
    load = _current.get()
    section = _section(config)
    if section is None and load is not None and not load.skip:
        section = _beside(load, config)
        if section is not None:
            config.quantization_config = section
    if section is None or _method(section) != QUANT_METHOD:
        return
    if load is not None:
        _check_codebooks(load, config, section)
        load.claimed = True
    if getattr(config, "transformers_weights", None) == GUARD:
        config.transformers_weights = None


def refuse_unclaimed(files: Any) -> None:
    """Raise InputError when files with packed tensors are about to be loaded as a plain checkpoint."""
    load = _current.get()
    if load is None or load.claimed or load.skip or not isinstance(files, (list, tuple)):
        return
    name = find_packed(file for file in files if str(file).endswith(".safetensors"))
    if name is not None:
        raise InputError(
            f"`{load.name}` holds packed tensors, such as `{name}`, but nothing that says how to read them",
            why=f"config.json has no quantization_config, and {TQ_CONFIG_NAME} is not there",
            fix=f"put {TQ_CONFIG_NAME} beside config.json",
        )


def _section(config: Any) -> Any:
    section = getattr(config, "quantization_config", None)
    if section is None and hasattr(config, "get_text_config"):
        section = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    return section


def _method(section: Any) -> Any:
    return section.get("quant_method") if isinstance(section, dict) else getattr(section, "quant_method", None)


def _beside(load: _Load, config: Any) -> dict[str, Any] | None:
    """The section of tq_config.json, or else of the config.json on disk, which `config` may be only a part of."""
    content = _read(load, config, TQ_CONFIG_NAME)
    if content is not None:
        return section_of(content) if content.get("layout", _NATIVE) == _NATIVE else None
    if not _is_folder(load) and getattr(config, "transformers_weights", None) != GUARD:
        return None
    section = (_read(load, config, "config.json") or {}).get("quantization_config")
    return section if isinstance(section, dict) and section.get("quant_method") == QUANT_METHOD else None


def _check_codebooks(load: _Load, config: Any, section: Any) -> None:
    """Raise InputError where tq_config.json has another codebook: all weights of a width hang on it, and none would
    look wrong by itself.
    """
    books = section.get(CODEBOOKS) if isinstance(section, dict) else None
    if not isinstance(books, dict):
        return
    others = (_read(load, config, TQ_CONFIG_NAME) or {}).get(CODEBOOKS)
    for bits, levels in others.items() if isinstance(others, dict) else ():
        if books.get(bits, levels) != levels:
            why = f"those of `{load.name}` differ at {bits} bits"
            raise InputError(f"config.json and {TQ_CONFIG_NAME} have different codebooks", why=why)


def _read(load: _Load, config: Any, file: str) -> dict[str, Any] | None:
    path = _find(load, config, file)
    if path is None:
        return None
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"`{path}` is larger than {_MAX_BYTES} bytes")
    return parse_object(path.read_bytes(), file)


def _folder(load: _Load) -> Path:
    return Path(os.fspath(load.name), load.hub.get("subfolder", ""))


def _is_folder(load: _Load) -> bool:
    return load.name is not None and _folder(load).is_dir()


def _find(load: _Load, config: Any, file: str) -> Path | None:
    if load.name is None:
        return None
    if _is_folder(load):
        path = _folder(load) / file
        return path if path.is_file() else None
    options = dict(load.hub)
    commit = getattr(config, "_commit_hash", None)
    if commit is not None:
        options["revision"] = commit
    try:
        found = cached_file(os.fspath(load.name), file, _raise_exceptions_for_missing_entries=False, **options)
    except OSError:
        # Offline, gated, or no such repository: whoever fetches the weights reports it, and better.
        return None
    return Path(found) if found else None


def section_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The `quantization_config` that a tq_config.json stands for. Raises InputError for an unknown kind."""
    kind = content.get("format")
    if kind not in (NATIVE_FORMAT, EXTENDED_FORMAT):
        why = f"only `{NATIVE_FORMAT}` and `{EXTENDED_FORMAT}` are known"
        raise InputError(f"{TQ_CONFIG_NAME} is of the format `{kind}`", why=why)
    section = {"quant_method": QUANT_METHOD, "seed": content.get("quantizer_seed", USUAL_SEED)}
    for key in ("bits", "group_size", "format_version", CODEBOOKS):
        if key in content:
            section[key] = content[key]
    tensors = content.get("tensors")
    if isinstance(tensors, dict):
        section["tensors"] = {name: entry for name, entry in tensors.items() if _is_packed(entry)}
    return section


def _is_packed(entry: Any) -> bool:
    """Plain tensors are listed too, with nothing of a format. What is no entry at all is for others to refuse."""
    return not isinstance(entry, dict) or "bits" in entry
