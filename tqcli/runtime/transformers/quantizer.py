"""`TqHfQuantizer`: how transformers loads, saves and unpacks our models.

Packed checkpoint: its headers say what is packed; each packed parameter is replaced before loading, so that names
and shapes in the model are those on disk. Plain checkpoint with a `TqConfig`: each parameter is encoded as it comes.
"""

from typing import Any

import torch
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from tqcli.errors import InputError
from tqcli.formats.native import QUANT_METHOD
from tqcli.runtime.headers import pairs, read_headers
from tqcli.runtime.packed import bytes_a_weight, stored_shapes
from tqcli.runtime.transformers import experts, saving, swap
from tqcli.runtime.transformers.config import TqConfig
from tqcli.runtime.transformers.conversions import decoding, for_saving
from tqcli.runtime.transformers.expected import expectations, planned_dtype, settle
from tqcli.runtime.transformers.homes import Home, check_plain, find_homes, place
from tqcli.runtime.transformers.hooks import keep_offloaded_dtypes
from tqcli.runtime.transformers.names import Names, unsuffixed_renamings
from tqcli.runtime.transformers.operations import DecodePacked, EncodeOnLoad, Plain
from tqcli.runtime.transformers.selection import Chosen, select
from tqcli.runtime.transformers.watch import check_watched, watch
from tqcli.runtime.transformers.weight import TqWeight

__all__ = ["TqConfig", "TqHfQuantizer"]

# A whole number of groups of every format.
_USUAL_COLUMNS = 4096


class TqHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """One instance per load."""

    requires_calibration = False

    def __init__(self, quantization_config: TqConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._config = quantization_config
        self._chosen: dict[str, Chosen] = {}
        self._conversions: list[Any] = []

    def _process_model_before_weight_loading(
        self, model: Any, dtype: Any = None, checkpoint_files: Any = None, **kwargs: Any
    ) -> Any:
        del kwargs
        dtype = dtype or model.dtype
        if self.pre_quantized:
            self._prepare_packed(model, checkpoint_files, dtype)
        else:
            self._chosen = select(model, checkpoint_files, self._config)
        experts.use(model, packed=[*swap.packed_weights(model), *self._chosen])
        expected = expectations(model, dtype)
        watch(model, settle=lambda: settle(model, expected), allow_unexpected=not self.pre_quantized)
        return model

    def _prepare_packed(self, model: Any, files: Any, dtype: torch.dtype) -> None:
        tensors = read_headers(_safetensors(files))
        names = Names(model)
        check_plain(tensors, names)
        placed = place(pairs(tensors), names, type(model).__name__)
        parameters = dict(model.named_parameters())
        homes = find_homes(placed, {name: tuple(value.shape) for name, value in parameters.items()}, self._config)
        self._config.describe({pair.name: home.stored_as for home in homes for pair in home.pairs})
        planned = planned_dtype(model, dtype)
        plain: dict[str, Plain] = {}
        for home in homes:
            decoded = planned(home.name, parameters[home.name].dtype)
            if swap.kind_of(model, home.name) is swap.Kind.PLAIN:
                plain[home.name] = _plain(home, decoded)
            else:
                weight = TqWeight(home.shape, home.stored_as, decoded, home.codes_shape, home.scales_shape)
                swap.put(model, home.name, weight)
        self._conversions = [
            *unsuffixed_renamings(entry.pair.name for entry in placed if entry.unsuffixed),
            *decoding(plain, model.base_model_prefix),
        ]

    def get_weight_conversions(self) -> list[Any]:
        """What transformers has to do besides the model's own conversions."""
        return self._conversions

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Scales keep their dtype on their way through our conversion."""
        if any(isinstance(operation, DecodePacked) for operation in getattr(converter, "operations", ())):
            return None
        return super().get_new_dtype(converter, param, dtype)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a plain parameter is to be encoded as it comes."""
        del model, kwargs
        return not self.pre_quantized and param_name in self._chosen

    def get_quantize_ops(self) -> EncodeOnLoad:
        """The operation for such a parameter."""
        return EncodeOnLoad(self._make_room)

    def _make_room(self, model: Any, name: str, missing_keys: Any) -> TqWeight:
        parameter, chosen = model.get_parameter(name), self._chosen[name]
        shapes = stored_shapes(tuple(parameter.shape), chosen.stored_as, by_item=chosen.by_item)
        weight = TqWeight(tuple(parameter.shape), chosen.stored_as, parameter.dtype, *shapes)
        gone = [name, *swap.put(model, name, weight)]
        if missing_keys is not None:
            missing_keys.difference_update(gone)
        return weight

    @property
    def quantized_element_size(self) -> float:
        """Bytes a weight, for device maps and allocators."""
        return bytes_a_weight((1, _USUAL_COLUMNS), self._config.default)

    def param_element_size(self, model: Any, param_name: str, param: Any) -> float:
        """Bytes an element of a parameter as it will be; packed ones already are."""
        if self.param_needs_quantization(model, param_name):
            return bytes_a_weight(tuple(param.shape), self._chosen[param_name].stored_as)
        size: int = param.element_size()
        return size

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        del kwargs
        check_watched(model)
        left = [name for name in self._chosen if not isinstance(model.get_submodule(name), TqWeight)]
        if left:
            raise InputError(f"`{left[0]}` was not compressed", why=f"nor were {len(left) - 1} others")
        weights = swap.packed_weights(model)
        keep_offloaded_dtypes(weights)
        for weight in weights.values():
            for parameter in weight.parts:
                parameter.requires_grad_(False)
        used = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = for_saving(used, self._conversions)  # noqa: SLF001  # where transformers keeps them
        return model

    def _dequantize(self, model: Any, dtype: Any = None, **kwargs: Any) -> Any:
        del kwargs
        swap.unpack(model)
        experts.stop_using(model)
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return model if wanted is None or wanted == model.dtype else model.to(wanted)

    def is_serializable(self, **kwargs: Any) -> bool:
        """Packed models are saved packed."""
        del kwargs
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradient."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Which experts are decoded depends on the tokens."""
        return False


def _plain(home: Home, dtype: torch.dtype) -> Plain:
    if home.is_merged or len(home.pairs) > 1:
        raise InputError(f"`{home.name}` is packed in parts", why="its module does not run packed")
    return Plain(home.shape, home.stored_as, dtype)


def _safetensors(files: Any) -> list[str]:
    found = [str(file) for file in files or []]
    if not found or not all(file.endswith(".safetensors") for file in found):
        raise InputError("a packed checkpoint must lie in safetensors files")
    return found


AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = TqConfig
AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = TqHfQuantizer
experts.install()
saving.install()
