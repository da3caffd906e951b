"""`load`: a model and its tokenizer in one call, from our folders, published compressed checkpoints and plain ones.

The native layout stays compressed in memory; the others are decoded while they are loaded. What transformers would do
with a warning (an unknown quantisation, missing tensors) is an error here.
"""

import json
import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers.auto import AutoHfQuantizer

from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.overlay import Overlay
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError, MachineError, TqError
from tqcli.formats.hlwq_files import HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME, QUANT_METHODS
from tqcli.hub.base_model import open_model, wants_base
from tqcli.hub.fetch import open_source
from tqcli.kv.cache import TurboQuantCache
from tqcli.kv.default import use_by_default
from tqcli.kv.settings import CacheSettings, read_settings
from tqcli.runtime.products import Activations
from tqcli.runtime.transformers.activations import check_activations, set_activations
from tqcli.runtime.transformers.decoded import every_layout
from tqcli.runtime.transformers.expert_cache_model import (
    check_expert_cache,
    expert_cache_device,
    move_with_expert_cache,
)
from tqcli.runtime.transformers.watch import raise_if_any

_TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
# Read here: `quant_method` of what is decoded while it is loaded. MLX's section names none.
_DECODED = ("compressed-tensors", "mlx", *QUANT_METHODS)
_UNFINISHED = (".tq-journal.jsonl", "*.partial")


def load(
    path_or_id: str | os.PathLike[str],
    revision: str | None = None,
    *,
    dtype: Any = "auto",
    device_map: Any = None,
    quantization_config: Any = None,
    token: str | None = None,
    base_model: str | os.PathLike[str] | None = None,
    kv: str | CacheSettings = "none",
    activations: Activations = "float",
    expert_cache: int | None = None,
) -> tuple[Any, Any]:
    """The model, in evaluation mode, and the tokenizer of a folder or a Hub id.

    dtype: of what is not packed and of what is decoded; "auto" for the checkpoint's own. device_map as in
    transformers. quantization_config: a `TqConfig` compresses a plain checkpoint while it is loaded. base_model: folder
    or Hub id of the model that has what an HLWQ folder lacks; None for the one that the folder names. kv: the key-value
    cache that `model.generate` then uses, such as "k4v3", or settings of it; "none" for transformers' own. activations:
    "float" to decode packed weights, equal to the bit to the decoded model; "int16" or "int8" to multiply them with a
    few tokens as integers on the CPU, several times as fast and close, not equal. What is not packed stays the same.
    expert_cache: packed experts stay in main memory, page-locked, with slots for so many of each layer's on the CUDA
    device that device_map names, where all else is; at least twice as many as a token has. The experts used last stay
    there (`expert_cache_report`); results are equal to the bit to those without. Each miss costs a copy.
    Raises InputError for a checkpoint that cannot be loaded whole, MachineError where the network stands in the way.
    """
    name = os.fspath(path_or_id)
    device = None if expert_cache is None else expert_cache_device(device_map)
    cache = read_settings(kv)
    check_activations(activations)
    is_folder = _is_folder(name)
    if is_folder:
        _check_finished(Path(name))
    opened = _open_hlwq(name, revision, base_model, token)
    if is_folder:
        check_folder(Path(name), opened.storage.files() if opened else ())
    config_home, tokenizer_home = _homes(name, opened)
    hub = {"revision": revision, "token": token}
    # Passed on even as None, it would hide the checkpoint's own.
    quantization = {} if quantization_config is None else {"quantization_config": quantization_config}
    try:
        config = AutoConfig.from_pretrained(config_home, **(hub if config_home == name else {"token": token}))
        _check_quantization(name, config)
        if expert_cache is not None:
            check_expert_cache(config, expert_cache)
        # What cannot have this cache is told before the weights are read.
        if cache.widths is not None:
            TurboQuantCache(config, cache)
        given = {} if config_home == name else {"config": config}
        with every_layout(opened):
            model, info = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=dtype,
                device_map=None if device else device_map,
                output_loading_info=True,
                **quantization,
                **given,
                **hub,
            )
        raise_if_any(info["missing_keys"], (), [entry[0] for entry in info["mismatched_keys"]])
        tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_home, **(hub if tokenizer_home == name else {"token": token})
        )
    except TqError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise _explained(name, error) from error
    if cache.widths is not None:
        use_by_default(model, cache)
    if expert_cache is not None and device is not None:
        move_with_expert_cache(model, expert_cache, device)
    set_activations(model, activations)
    return model, tokenizer


def check_folder(folder: Path, also: Iterable[str] = ()) -> None:
    """Raise InputError for a folder that holds no finished checkpoint. also: files that its base model adds."""
    _check_finished(folder)
    names = {path.name for path in folder.iterdir() if path.is_file()} | set(also)
    if "config.json" not in names:
        raise InputError(f"`{folder}` holds no checkpoint", why="it has no config.json")
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise InputError(f"`{folder}` holds no weights", why="it has no *.safetensors")
    if not any(fnmatchcase(name, pattern) for name in names for pattern in _TOKENIZERS):
        # transformers may make up a tokenizer of a handful of tokens.
        raise InputError(f"`{folder}` holds no tokenizer", fix="copy the tokenizer's files from the base model")


def _check_finished(folder: Path) -> None:
    unfinished = [path.name for pattern in _UNFINISHED for path in sorted(folder.glob(pattern))]
    if unfinished:
        raise InputError(
            f"`{folder}` is an unfinished conversion",
            why=f"`{unfinished[0]}` is there",
            fix="run the same `tq convert` again: it goes on where it stopped",
        )


def _open_hlwq(
    name: str, revision: str | None, base_model: str | os.PathLike[str] | None, token: str | None
) -> Checkpoint | None:
    """An HLWQ folder with its base model's tensors; None for what transformers opens by itself, or by our plug-in."""
    is_folder = Path(name).is_dir()
    if base_model is None and not (is_folder and _looks_like_hlwq(Path(name))):
        return None
    storage = open_source(name, None if is_folder else revision, token=token)
    return open_model(storage, None if base_model is None else os.fspath(base_model), token=token)


def _looks_like_hlwq(folder: Path) -> bool:
    config = folder / "config.json"
    if any((folder / name).is_file() for name in (HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME)):
        return True
    if not config.is_file():
        return wants_base(LocalFolder(folder))
    try:
        section = parse_object(config.read_bytes(), config.name).get("quantization_config")
    except InputError:
        # transformers says it better.
        return False
    return isinstance(section, dict) and section.get("quant_method") in QUANT_METHODS


def _homes(name: str, opened: Checkpoint | None) -> tuple[str, str]:
    """Where config.json and the tokenizer are: in the folder, or with its base model."""
    storage = opened.storage if opened else None
    if not isinstance(storage, Overlay):
        return name, name
    own = storage.folder.files()
    has_tokenizer = any(fnmatchcase(file, pattern) for file in own for pattern in _TOKENIZERS)
    base = storage.base.label
    return name if "config.json" in own else base, name if has_tokenizer else base


def _is_folder(name: str) -> bool:
    """Whether `name` is a folder. Raises InputError for what is neither a folder nor like a Hub id."""
    path = Path(name)
    if name and path.is_dir():
        return True
    if path.is_file():
        raise InputError(f"`{name}` is a file, not a folder", fix="name the folder that holds the checkpoint")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
        raise InputError(f"no such folder: `{name}`")
    return False


def _check_quantization(name: str, config: Any) -> None:
    section = getattr(config, "quantization_config", None)
    if not isinstance(section, dict) or section.get("quant_method", "mlx") in _DECODED:
        return
    if not AutoHfQuantizer.supports_quant_method(section):
        raise InputError(f"`{name}` is quantised by `{section.get('quant_method')}`", why="transformers cannot read it")


def _explained(name: str, error: Exception) -> TqError:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if _is_network(error):
        return MachineError(f"cannot fetch `{name}`", why=line)
    if isinstance(error, json.JSONDecodeError):
        return InputError(f"`{name}` holds a file that is not valid JSON", why=line)
    return InputError(f"cannot load `{name}`", why=line)


def _is_network(error: BaseException) -> bool:
    """Whether a failing connection is behind an error; transformers wraps it in an OSError."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (ConnectionError, TimeoutError, LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        if isinstance(seen, HfHubHTTPError) and seen.response is not None and seen.response.status_code >= 500:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
