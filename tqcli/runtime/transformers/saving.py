"""Add to what `save_pretrained` writes: tq_config.json, and the guard in config.json.

The guard names a file that is not there. Without tqcli, transformers then stops with that name, instead of loading
random weights with a line in the log.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_utils import PreTrainedModel

from tqcli.errors import InputError
from tqcli.formats.native import FORMAT_VERSION, GUARD, NATIVE_FORMAT, PACKED, QUANT_METHOD, TQ_CONFIG_NAME
from tqcli.runtime.transformers.config import TqConfig
from tqcli.runtime.transformers.headers import Pair, pairs, read_headers
from tqcli.runtime.transformers.swap import packed_weights


def install() -> None:
    """Wrap `save_pretrained` of all models; those that are not ours pass through. Idempotent."""
    original = PreTrainedModel.save_pretrained
    if not hasattr(original, "_tqcli"):
        PreTrainedModel.save_pretrained = _completing(original)


def _completing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        config = getattr(getattr(self, "hf_quantizer", None), "quantization_config", None)
        if not isinstance(config, TqConfig):
            return original(self, save_directory, *args, **kwargs)
        if kwargs.get("push_to_hub"):
            raise InputError(
                "save_pretrained cannot push a packed model", fix="save it, then `tq push`, or use push_to_hub()"
            )
        result = original(self, save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            _complete(self, config, Path(os.fspath(save_directory)))
        return result

    save_pretrained.__dict__["_tqcli"] = True
    return save_pretrained


def _complete(model: Any, config: TqConfig, folder: Path) -> None:
    saved = pairs(read_headers(sorted(folder.glob("*.safetensors"))))
    weights = _weights_by_saved_name(model, saved)
    geometries = {name: weight.geometry for name, weight in weights.items()}
    content = {
        "format": NATIVE_FORMAT,
        "format_version": FORMAT_VERSION,
        "bits": config.bits,
        "group_size": config.group_size,
        "quantizer_seed": config.default.seed,
        "compressed_layers": len(saved),
        "original_model": Path(getattr(model.config, "name_or_path", "") or "").name,
        "orig_in_dims": {
            name: weight.shape[-1] for name, weight in weights.items() if weight.shape[-1] % weight.geometry.group_size
        },
        "tensors": {name: geometry.as_dict() for name, geometry in geometries.items()},
    }
    _write(folder / TQ_CONFIG_NAME, content)
    config_file = folder / "config.json"
    section = json.loads(config_file.read_text("utf-8"))
    section["transformers_weights"] = GUARD
    config.describe(geometries)
    section["quantization_config"] = config.to_dict()
    _write(config_file, section)


def _weights_by_saved_name(model: Any, saved: list[Pair]) -> dict[str, Any]:
    """Saving took apart what loading had put together; the same conversions lead from the names on disk back."""
    transforms = getattr(model, "_weight_conversions", None) or []
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    weights = packed_weights(model)
    found = {}
    for pair in saved:
        renamed, _ = rename_source_key(pair.name + PACKED, renamings, converters, model.base_model_prefix, state)
        weight = weights.get(renamed.removesuffix(PACKED))
        if weight is None:
            raise InputError(f"`{pair.name}` was saved, but belongs to no {QUANT_METHOD} weight of the model")
        found[pair.name] = weight
    return found


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
