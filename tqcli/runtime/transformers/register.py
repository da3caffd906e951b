"""Make transformers find us, whichever of the two is imported first, without importing it.

A finder on `sys.meta_path` waits for two modules of transformers and, once each has run, adds what is ours:
the method `turboquant` in the quantizers' tables, and the look at every `from_pretrained` that detects packed
checkpoints. What is added is small; the runtime itself is imported when a packed model is loaded.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tqcli.formats.native import QUANT_METHOD

AUTO = "transformers.quantizers.auto"
MODELING = "transformers.modeling_utils"


def install() -> None:
    """Prepare transformers' modules: those already imported now, the others when they are. Idempotent."""
    for name, prepare in _PREPARE.items():
        module = sys.modules.get(name)
        if module is not None:
            _run(prepare, module)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _run(prepare: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        prepare(module)
    except (AttributeError, KeyError) as error:
        why = f"`{module.__name__}` is not as it was from 5.5 to 5.24: {error}"
        raise ImportError(f"this version of transformers is not known to tqcli: {why}") from error


class LazyConfig:
    """Stands in the table of configurations until one is needed."""

    @staticmethod
    def from_dict(config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The `TqConfig` of a `quantization_config` section."""
        return _runtime().TqConfig.from_dict(config_dict, **kwargs)


def lazy_quantizer(config: Any, **kwargs: Any) -> Any:
    """Stands in the table of quantizers until one is needed."""
    return _runtime().TqHfQuantizer(config, **kwargs)


def _runtime() -> ModuleType:
    return importlib.import_module("tqcli.runtime.transformers.quantizer")


def _source() -> ModuleType:
    return importlib.import_module("tqcli.runtime.transformers.source")


def _decoded() -> ModuleType:
    return importlib.import_module("tqcli.runtime.transformers.decoded")


def _prepare_auto(auto: ModuleType) -> None:
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(QUANT_METHOD, LazyConfig)
    auto.AUTO_QUANTIZER_MAPPING.setdefault(QUANT_METHOD, lazy_quantizer)
    _wrap(auto, "get_hf_quantizer", _claiming)


def _prepare_modeling(modeling: ModuleType) -> None:
    _wrap(modeling, "get_hf_quantizer", _claiming)
    _wrap(modeling, "_get_resolved_checkpoint_files", _refusing_unclaimed)
    model_class = modeling.PreTrainedModel
    original = model_class.__dict__["from_pretrained"].__func__
    if not hasattr(original, "_tqcli"):
        model_class.from_pretrained = classmethod(_marked(_remembering_origin(original), original))


def _claiming(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_hf_quantizer(config: Any, *args: Any, **kwargs: Any) -> Any:
        _source().claim(config)
        return original(config, *args, **kwargs)

    return get_hf_quantizer


def _refusing_unclaimed(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_resolved_checkpoint_files(*args: Any, **kwargs: Any) -> Any:
        resolved = original(*args, **kwargs)
        _source().refuse_unclaimed(resolved[0])
        return resolved

    return get_resolved_checkpoint_files


def _remembering_origin(original: Callable[..., Any]) -> Callable[..., Any]:
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        decoded = None if args else _decoded().load_decoded(original, cls, pretrained_model_name_or_path, kwargs)
        if decoded is not None:
            return decoded
        with _source().loading(pretrained_model_name_or_path, kwargs):
            return original(cls, pretrained_model_name_or_path, *args, **kwargs)

    return from_pretrained


def _wrap(module: ModuleType, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(module, name)
    if not hasattr(original, "_tqcli"):
        setattr(module, name, _marked(wrapper(original), original))


def _marked(wrapped: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    functools.update_wrapper(wrapped, original)
    wrapped.__dict__["_tqcli"] = True
    return wrapped


_PREPARE: dict[str, Callable[[ModuleType], None]] = {AUTO: _prepare_auto, MODELING: _prepare_modeling}


class _Finder(MetaPathFinder):
    """Finds nothing itself: lets the other finders find the two modules, and prepares them once they ran."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        prepare = _PREPARE.get(fullname)
        if prepare is None:
            return None
        spec = next(_specs(fullname, path, target), None)
        if spec is None or spec.loader is None:
            return None
        spec.loader = _PreparingLoader(spec.loader, prepare)
        return spec


def _specs(name: str, path: Sequence[str] | None, target: ModuleType | None) -> Iterator[ModuleSpec]:
    for finder in sys.meta_path:
        if isinstance(finder, _Finder):
            continue
        spec = finder.find_spec(name, path, target)
        if spec is not None:
            yield spec


class _PreparingLoader(Loader):
    def __init__(self, loader: Loader, prepare: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._prepare = prepare

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _run(self._prepare, module)
