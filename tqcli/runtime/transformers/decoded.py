"""Folders that transformers cannot read, or reads wrongly, loaded as what they decode to.

Each parameter is decoded when transformers comes to it, so that no second copy of the model is in memory. The native
layout is left out: it stays compressed (`quantizer`). So is compressed-tensors, where transformers' own loader does it
right; it finds no place for experts that lie one by one in a model that has them in one tensor, and goes on with
random ones.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from tqcli.architectures.base import Architecture, find
from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.shards import read_bounded
from tqcli.checkpoint.storage import Storage
from tqcli.errors import InputError
from tqcli.formats.hlwq_files import HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME
from tqcli.formats.native import QUANT_METHOD
from tqcli.hub.base_model import local_checkpoint, open_model
from tqcli.hub.fetch import open_source
from tqcli.layouts.files import QUANTIZATION_KEYS, plain_config
from tqcli.layouts.originals import restored
from tqcli.readers.find import Contents, read
from tqcli.runtime.transformers.watch import raise_if_any
from tqcli.weights import Weight, read_elements

_DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# Where config.json tells of a compression; MLX's name comes second.
_SECTIONS = ("quantization_config", "quantization")
_GENERATION = "generation_config.json"
_ALWAYS = ("hlwq", "mlx")
# Files that show what config.json does not.
_FILES = (HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME)
_every: ContextVar[bool] = ContextVar("tqcli_decode_every_layout", default=False)
_opened: ContextVar[Checkpoint | None] = ContextVar("tqcli_opened", default=None)


@contextmanager
def every_layout(opened: Checkpoint | None = None) -> Iterator[None]:
    """Decode compressed-tensors too, whatever transformers could do with it. opened: what is to be loaded, where the
    caller knows it already.
    """
    tokens = _every.set(True), _opened.set(opened)
    try:
        yield
    finally:
        _every.reset(tokens[0])
        _opened.reset(tokens[1])


class LazyWeight:
    """Stands in a state dict for a tensor that is read and decoded when it is sliced, as transformers does."""

    def __init__(self, storage: Storage, weight: Weight) -> None:
        self._storage = storage
        self._weight = weight
        self.dtype = _DTYPES[weight.dtype]
        self.shape = torch.Size(weight.shape)

    def __getitem__(self, index: Any) -> Tensor:
        weight = self._weight
        elements = np.ascontiguousarray(read_elements(self._storage, weight, 0, weight.rows))
        data = bytearray(elements.data.cast("B"))
        flat = torch.frombuffer(data, dtype=self.dtype) if data else torch.empty(0, dtype=self.dtype)
        found: Tensor = flat.reshape(self.shape)[index]
        return found

    def is_floating_point(self) -> bool:
        """As a tensor's."""
        return self.dtype.is_floating_point

    def get_shape(self) -> list[int]:
        """As a safetensors slice's."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """As a safetensors slice's."""
        return self._weight.dtype


def load_decoded(original: Callable[..., Any], cls: Any, name: Any, options: Mapping[str, Any]) -> Any:
    """What `from_pretrained` gives for a folder of ours to decode, None for all others.

    original: the method of transformers. Raises InputError where a tensor has no home or a home no tensor.
    """
    if name is None or not _is_compressed(name, options):
        return None
    checkpoint = _opened.get() or _open(str(name), options)
    contents = read(checkpoint)
    architecture = find(checkpoint.config)
    if not _is_ours(contents, architecture):
        return None
    weights = restored(contents, checkpoint, architecture)
    return _load(original, cls, name, local_checkpoint(checkpoint), weights, options)


def _open(name: str, options: Mapping[str, Any]) -> Checkpoint:
    """With the base model's tensors, where it lacks some; the option `base_model` is ours: its folder or Hub id."""
    token = options.get("token")
    storage = open_source(name, options.get("revision"), token=token)
    return open_model(storage, options.get("base_model"), token=token)


def _load(
    original: Callable[..., Any],
    cls: Any,
    name: Any,
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    options: Mapping[str, Any],
) -> Any:
    state = {weight.name: LazyWeight(checkpoint.storage, weight) for weight in weights}
    wants_info = bool(options.get("output_loading_info"))
    dropped = ("config", "revision", "output_loading_info", "subfolder", "state_dict", "use_safetensors", "base_model")
    # Ours is the better message for sizes: it names the tensor, and comes as the error that all others are.
    kept = {key: value for key, value in options.items() if key not in dropped} | {"ignore_mismatched_sizes": True}
    config = _plain(options.get("config"), checkpoint)
    if cls.config_class is not None and not isinstance(config, cls.config_class):
        why = f"{cls.__name__} is not for `{config.model_type}`"
        raise InputError(f"`{name}` is another model", why=why, fix="AutoModelForCausalLM finds the class")
    model, info = original(cls, None, config=config, state_dict=state, output_loading_info=True, **kept)
    mismatched = [str(entry[0]) for entry in info["mismatched_keys"]]
    raise_if_any(info["missing_keys"], info["unexpected_keys"], mismatched)
    model.name_or_path = model.config.name_or_path = str(name)
    if _GENERATION in checkpoint.storage.files() and hasattr(model, "generation_config"):
        said = parse_object(read_bounded(checkpoint.storage, _GENERATION), _GENERATION)
        model.generation_config = GenerationConfig.from_dict(said)
    return (model, info) if wants_info else model


def _is_compressed(name: Any, options: Mapping[str, Any]) -> bool:
    """A quick look, since every `from_pretrained` passes here: at the config that is given, or at a folder's."""
    if any(options.get(key) is not None for key in ("quantization_config", "state_dict", "gguf_file")):
        return False
    if _opened.get() is not None or options.get("base_model") is not None:
        return True
    if any((Path(str(name)) / file).is_file() for file in _FILES):
        return True
    config = options.get("config")
    if config is not None and not isinstance(config, (str, Path)):
        return any(_compresses(getattr(config, key, None)) for key in _SECTIONS)
    file = Path(str(name)) / "config.json"
    if not file.is_file():
        return False
    try:
        said = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(said, dict) and any(_compresses(said.get(key)) for key in _SECTIONS)


def _compresses(section: Any) -> bool:
    """Whether a section of config.json is of another layout than the native one, which has its own way in."""
    method = section.get("quant_method") if isinstance(section, Mapping) else getattr(section, "quant_method", None)
    return section is not None and method != QUANT_METHOD


def _is_ours(contents: Contents, architecture: Architecture) -> bool:
    if contents.layout in _ALWAYS:
        return True
    if contents.layout != "compressed_tensors":
        return False
    one_by_one = any(architecture.classify(packed).expert is not None for packed in contents.packed)
    return _every.get() or (architecture.stacked_experts and one_by_one)


def _plain(config: Any, checkpoint: Checkpoint) -> Any:
    """The model's configuration without a word of any compression."""
    if config is None or isinstance(config, (str, Path)):
        said = plain_config(checkpoint)
        return AutoConfig.for_model(str(said.pop("model_type")), **said)
    plain = deepcopy(config)
    for part in (plain, plain.get_text_config(decoder=True)):
        for key in QUANTIZATION_KEYS:
            if getattr(part, key, None) is not None:
                delattr(part, key)
    return plain
