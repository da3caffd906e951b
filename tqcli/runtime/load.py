"""`load`: a model and its tokenizer in one call, from our folders, published compressed checkpoints and plain ones.

The native layout stays compressed in memory; the others are decoded while they are loaded. What transformers would do
with a warning (an unknown quantisation, missing tensors) is an error here.
"""

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers.auto import AutoHfQuantizer

from tqcli.errors import InputError, MachineError, TqError
from tqcli.runtime.transformers.decoded import every_layout
from tqcli.runtime.transformers.watch import raise_if_any

_TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
# Read here: `quant_method` of what is decoded while it is loaded. MLX's section names none.
_DECODED = ("compressed-tensors", "hlwq", "mlx", "polarengine")
_UNFINISHED = (".tq-journal.jsonl", "*.partial")


def load(
    path_or_id: str | os.PathLike[str],
    revision: str | None = None,
    *,
    dtype: Any = "auto",
    device_map: Any = None,
    quantization_config: Any = None,
    token: str | None = None,
) -> tuple[Any, Any]:
    """The model, in evaluation mode, and the tokenizer of a folder or a Hub id.

    dtype: of what is not packed and of what is decoded; "auto" for the checkpoint's own. device_map as in
    transformers. quantization_config: a `TqConfig` compresses a plain checkpoint while it is loaded.
    Raises InputError for a checkpoint that cannot be loaded whole, MachineError where the network stands in the way.
    """
    name = os.fspath(path_or_id)
    if _is_folder(name):
        check_folder(Path(name))
    hub = {"revision": revision, "token": token}
    # Passed on even as None, it would hide the checkpoint's own.
    quantization = {} if quantization_config is None else {"quantization_config": quantization_config}
    try:
        _check_quantization(name, AutoConfig.from_pretrained(name, **hub))
        with every_layout():
            model, info = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                **quantization,
                **hub,
            )
        raise_if_any(info["missing_keys"], (), [entry[0] for entry in info["mismatched_keys"]])
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    except TqError:
        raise
    except (OSError, ValueError) as error:
        raise _explained(name, error) from error
    return model, tokenizer


def check_folder(folder: Path) -> None:
    """Raise InputError for a folder that holds no finished checkpoint."""
    unfinished = [path.name for pattern in _UNFINISHED for path in sorted(folder.glob(pattern))]
    if unfinished:
        raise InputError(
            f"`{folder}` is an unfinished conversion",
            why=f"`{unfinished[0]}` is there",
            fix="run the same `tq convert` again: it goes on where it stopped",
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"`{folder}` holds no checkpoint", why="it has no config.json")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise InputError(f"`{folder}` holds no weights", why="it has no *.safetensors")
    if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZERS):
        # transformers may make up a tokenizer of a handful of tokens.
        raise InputError(f"`{folder}` holds no tokenizer", fix="copy the tokenizer's files from the base model")


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
