"""vLLM's usual loader, but that it knows packed tensors: it hands them to models as rows, and counts what comes.

It stands in the place of the usual one (`--load-format auto`, `hf` and `safetensors`) and leaves all to it where a
checkpoint is not ours: there is no other hook between the files and a model's own rules for names, and `vllm serve
folder` alone has to work. What vLLM does not notice (in a quantised model a tensor that is missing makes answers of
nonsense, without a word) is an error here. Left out: what the files hold (`contents`, `online`).
"""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.platforms import current_platform

from tqcli.errors import InputError, TqError
from tqcli.runtime.headers import find_packed
from tqcli.runtime.transformers.config import TqConfig
from tqcli.runtime.vllm import online
from tqcli.runtime.vllm.compiler import tell_compiler
from tqcli.runtime.vllm.config import TqQuantization
from tqcli.runtime.vllm.contents import PackedFiles, Stream, check_codebooks, expert_number, recorded
from tqcli.runtime.vllm.cores import unpin
from tqcli.runtime.vllm.experts import PackedExpertsMethod
from tqcli.runtime.vllm.linear import PackedLinearMethod
from tqcli.runtime.vllm.record import published_section, read_record
from tqcli.runtime.vllm.shapes import shapes_in_model

_FORMATS = ("auto", "hf", "safetensors")
# What vLLM's loaders raise for a tensor that the model has no place for, or of another shape.
_REFUSALS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class TqModelLoader(DefaultModelLoader):  # type: ignore[misc]
    """One load of one model."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self.enable_weights_track: bool | None
        self._quantization: TqQuantization | None = None
        self._model_config: Any = None
        self._current = ""

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        """A published checkpoint says nothing in config.json; its quantisation is told here, before layers are made."""
        if vllm_config.quant_config is None:
            section = published_section(read_record(model_config.model, model_config.revision), model_config.model)
            if section is not None:
                vllm_config.quant_config = TqQuantization(section)
        quantization = vllm_config.quant_config
        self._quantization = quantization if isinstance(quantization, TqQuantization) else None
        self._model_config = model_config
        loaded: nn.Module = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        if self._quantization is not None:
            tell_compiler(vllm_config, loaded, self._quantization.settings)
            if current_platform.is_cpu():
                unpin()
        return loaded

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Raises InputError for a tensor that has no place, does not fit, or is missing."""
        if self._quantization is None:
            super().load_weights(model, model_config)
            return
        if self.enable_weights_track is None:
            self.enable_weights_track = True
        try:
            super().load_weights(model, model_config)
        except TqError:
            raise
        except _REFUSALS as error:
            raise self._refused(error) from error
        for module in list(model.modules()):
            method = getattr(module, "quant_method", None)
            if isinstance(method, (PackedLinearMethod, PackedExpertsMethod)):
                method.finish(module)

    def _get_weights_iterator(self, source: DefaultModelLoader.Source) -> Generator[tuple[str, Tensor], None, None]:
        stream = self._stream(source)
        if stream is None:
            found: Generator[tuple[str, Tensor], None, None] = super()._get_weights_iterator(source)
            return found
        return self._watched(stream, source.prefix)

    def _watched(self, stream: Stream, prefix: str) -> Generator[tuple[str, Tensor], None, None]:
        """Remember which tensor it is that a model refuses."""
        count = self._model_config.get_num_experts()
        for name, tensor in stream:
            self._current = name
            # vLLM passes experts that it does not know over, without a word.
            if (number := expert_number(name)) is not None and number >= count > 0:
                raise InputError(f"tensor `{name}` is one too many", why=f"the model has {count} experts")
            yield prefix + name, tensor
        self._current = ""

    def _stream(self, source: DefaultModelLoader.Source) -> Stream | None:
        """None where vLLM's own will do."""
        if self._quantization is None:
            return None
        _, files, are_safetensors, _ = self._prepare_weights(
            source.model_or_path,
            source.subfolder,
            source.revision,
            source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )
        paths = {Path(file).name: Path(file) for file in files}
        if are_safetensors and find_packed(files) is not None:
            return self._packed(paths)
        if self._quantization.section is not None:
            return None
        if not are_safetensors:
            raise InputError("only safetensors are packed while they are loaded", fix="convert the checkpoint first")
        formats = online.online_formats(next(iter(paths.values())).parent, self._quantization.settings.recipe)
        return online.stream(paths, formats, self._model_config.dtype)

    def _packed(self, paths: Mapping[str, Path]) -> Stream:
        record = read_record(self._model_config.model, self._model_config.revision)
        quantization = self._quantization
        section = quantization.section if quantization and quantization.section else None
        section = section or published_section(record, self._model_config.model)
        if section is None:
            name = find_packed(paths.values())
            raise InputError(f"`{name}` is packed, and nothing says how", why="neither config.json nor tq_config.json")
        check_codebooks(section, record)
        files = PackedFiles(paths)
        named = recorded(record, files)
        if named is None:
            config = AutoConfig.from_pretrained(self._model_config.model, revision=self._model_config.revision)
            named = shapes_in_model(config, files.pairs.values())
        return files.stream(TqConfig.from_dict(dict(section)), named, self._model_config.dtype)

    def _refused(self, error: BaseException) -> InputError:
        lines = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__
        if not self._current:
            return InputError("the checkpoint is not whole", why=why, fix="fetch or convert it again")
        return InputError(f"tensor `{self._current}` cannot be loaded", why=why)


def register() -> None:
    """Take the place of vLLM's usual loader, once."""
    for name in _FORMATS:
        if _LOAD_FORMAT_TO_MODEL_LOADER.get(name, DefaultModelLoader) is DefaultModelLoader:
            _LOAD_FORMAT_TO_MODEL_LOADER.pop(name, None)
            register_model_loader(name)(TqModelLoader)
