"""What happens to a tensor on its way into the model: packed tensors decoded, plain ones encoded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tq_kernels import NonFiniteWeight
from transformers.core_model_loading import ConversionOps

from tqcli.errors import InputError
from tqcli.formats.native import PAIRS
from tqcli.formats.native_section import NativeFormat
from tqcli.runtime.packed import decode_packed, empty_stored, encode_packed
from tqcli.runtime.transformers.weight import TqWeight

# Rows are encoded this many bytes at a time, so that a parameter of a gigabyte needs no second gigabyte.
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Plain:
    """A parameter that is packed on disk and plain in memory."""

    shape: tuple[int, ...]
    stored_as: NativeFormat
    dtype: torch.dtype


class DecodePacked(ConversionOps):  # type: ignore[misc]
    """Codes and scales -> the parameter, for owners that cannot hold a packed weight, such as a router."""

    def __init__(self, plain: Mapping[str, Plain]) -> None:
        self.plain = plain

    @torch.no_grad()
    def convert(
        self, input_dict: Mapping[str, list[Tensor]], *args: Any, full_layer_name: str = "", **kwargs: Any
    ) -> dict[str, Tensor]:
        """{pattern: [codes], pattern: [scales]} -> {name: weight}."""
        del args, kwargs
        target = self.plain[full_layer_name]
        ending = rf"\{PAIRS[target.stored_as.format][0]}$"
        (codes,) = (tensors[0] for pattern, tensors in input_dict.items() if pattern.endswith(ending))
        (scales,) = (tensors[0] for pattern, tensors in input_dict.items() if not pattern.endswith(ending))
        weight = decode_packed(
            target.stored_as, codes.contiguous(), scales.contiguous(), target.shape[-1], target.dtype
        )
        return {full_layer_name: weight.view(target.shape)}

    @property
    def reverse_op(self) -> Any:
        """There is none: the parameter is saved as it is in memory."""
        raise NotImplementedError("decoded parameters are saved plain")


class EncodeOnLoad(ConversionOps):  # type: ignore[misc]
    """A plain parameter -> codes and scales, and the packed weight put in its place."""

    def __init__(self, make_room: Callable[[Any, str, Any], TqWeight]) -> None:
        self.make_room = make_room

    @torch.no_grad()
    def convert(
        self,
        input_dict: Mapping[str, Any],
        *args: Any,
        model: Any = None,
        missing_keys: Any = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """{name: weight} -> {name.tq_packed: codes, name.tq_norms: norms}, or as the format calls them."""
        del args, kwargs
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            home = self.make_room(model, name, missing_keys)
            if tuple(weight.shape) != tuple(home.shape):
                raise InputError(f"`{name}` is {list(weight.shape)}, the model wants {list(home.shape)}")
            tensors = encode(weight, home.stored_as, name)
            for ending, tensor, parameter in zip(PAIRS[home.stored_as.format], tensors, home.parts, strict=True):
                result[name + ending] = tensor.view(parameter.shape)
        return result


def encode(weight: Tensor, stored_as: NativeFormat, name: str) -> tuple[Tensor, Tensor]:
    """Codes and scales of (..., columns) as two matrices, on the weight's device.

    Raises InputError for a weight that is not finite.
    """
    matrix = weight.reshape(-1, weight.shape[-1])
    rows, columns = matrix.shape
    codes, scales = empty_stored(rows, columns, stored_as, weight.device)
    step = max(1, _CHUNK_BYTES // (columns * matrix.element_size()))
    for start in range(0, rows, step):
        chunk = matrix[start : start + step]
        try:
            some_codes, some_scales = encode_packed(stored_as, chunk, threads=max(1, torch.get_num_threads()))
        except NonFiniteWeight as error:
            raise InputError(f"`{name}` cannot be compressed", why=f"from row {start}: {error}") from error
        first = start * len(codes) // rows
        codes[first : first + len(some_codes)] = some_codes
        scales[start : start + len(chunk)] = some_scales
    return codes, scales
