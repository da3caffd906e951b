"""Add to what `save_pretrained` writes: tq_config.json, and the guard in config.json.

The guard names a file that is not there. Without tqcli, transformers then stops with that name, instead of loading
random weights with a line in the log.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_utils import PreTrainedModel

from tqcli.errors import InputError
from tqcli.formats.native import (
    EXTENDED_FORMAT,
    GUARD,
    NATIVE_FORMAT,
    PAIRS,
    QUANT_METHOD,
    TQ_CONFIG_NAME,
    version_of,
)
from tqcli.formats.native_section import CODEBOOKS, NativeFormat, codebooks, entry, section
from tqcli.formats.tq import Tq
from tqcli.runtime.headers import Pair, pairs, read_headers
from tqcli.runtime.transformers.config import TqConfig
from tqcli.runtime.transformers.swap import packed_weights
from tqcli.runtime.transformers.weight import TqWeight


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
    formats = {name: weight.stored_as for name, weight in weights.items()}
    record = _record(config, formats, {pair.name: _shape(pair, weights[pair.name]) for pair in saved})
    original = Path(getattr(model.config, "name_or_path", "") or "").name
    _write(folder / TQ_CONFIG_NAME, {**record, "original_model": original})
    config_file = folder / "config.json"
    content = json.loads(config_file.read_text("utf-8"))
    described = section(config.default, formats)
    _write(config_file, {**content, "transformers_weights": GUARD, "quantization_config": described})


def _shape(pair: Pair, weight: TqWeight) -> tuple[int, ...]:
    """Of a weight on disk, which may be one of several that lie in one piece in memory."""
    whole = tuple(weight.shape)
    return whole if prod(whole[:-1]) == pair.rows else (pair.rows, whole[-1])


def _record(
    config: TqConfig, formats: Mapping[str, NativeFormat], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """tq_config.json: all of each weight's format, and the keys of published readers where they know all of them."""
    published = all(isinstance(one, Tq) for one in formats.values())
    books = codebooks(formats.values())
    return {
        "format": NATIVE_FORMAT if published else EXTENDED_FORMAT,
        "format_version": version_of(one.format for one in formats.values()),
        **(_published_keys(config.default, shapes) if published and isinstance(config.default, Tq) else {}),
        **({CODEBOOKS: books} if books else {}),
        "compressed_layers": len(formats),
        "tensors": {name: {**entry(one), "shape": list(shapes[name])} for name, one in formats.items()},
    }


def _published_keys(default: Tq, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    padded = {name: shape[-1] for name, shape in shapes.items() if shape[-1] % default.group_size}
    return {
        "bits": default.bits,
        "group_size": default.group_size,
        "quantizer_seed": default.seed,
        "orig_in_dims": padded,
    }


def _weights_by_saved_name(model: Any, saved: list[Pair]) -> dict[str, TqWeight]:
    """Saving took apart what loading had put together; the same conversions lead from the names on disk back."""
    transforms = getattr(model, "_weight_conversions", None) or []
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    weights = packed_weights(model)
    found = {}
    for pair in saved:
        ending = PAIRS[pair.format][0]
        renamed, _ = rename_source_key(pair.name + ending, renamings, converters, model.base_model_prefix, state)
        weight = weights.get(renamed.removesuffix(ending))
        if weight is None:
            raise InputError(f"`{pair.name}` was saved, but belongs to no {QUANT_METHOD} weight of the model")
        found[pair.name] = weight
    return found


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
