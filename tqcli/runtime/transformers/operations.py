"""What happens to a tensor on its way into the model: packed tensors decoded, plain ones encoded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tq_kernels import NonFiniteWeight
from tq_kernels.tensors import decode_tensor, encode_tensor
from transformers.core_model_loading import ConversionOps

from tqcli.errors import InputError
from tqcli.formats.native import NORMS, PACKED
from tqcli.runtime.transformers.geometry import Geometry
from tqcli.runtime.transformers.weight import TqWeight

# Rows are encoded this many bytes at a time, so that a parameter of a gigabyte needs no second gigabyte.
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Plain:
    """A parameter that is packed on disk and plain in memory."""

    shape: tuple[int, ...]
    geometry: Geometry
    dtype: torch.dtype


class DecodePacked(ConversionOps):  # type: ignore[misc]
    """Codes and norms -> the parameter, for owners that cannot hold a packed weight, such as a router."""

    def __init__(self, plain: Mapping[str, Plain]) -> None:
        self.plain = plain

    @torch.no_grad()
    def convert(
        self, input_dict: Mapping[str, list[Tensor]], *args: Any, full_layer_name: str = "", **kwargs: Any
    ) -> dict[str, Tensor]:
        """{pattern: [codes], pattern: [norms]} -> {name: weight}."""
        del args, kwargs
        found = {NORMS if "tq_norms" in pattern else PACKED: tensors[0] for pattern, tensors in input_dict.items()}
        target = self.plain[full_layer_name]
        tables, columns = target.geometry.tables, target.shape[-1]
        codes = found[PACKED].reshape(-1, tables.bytes_per_group)
        norms = found[NORMS].reshape(-1, tables.groups(columns))
        weight = decode_tensor(codes, norms, columns, tables, target.dtype)
        return {full_layer_name: weight.view(target.shape)}

    @property
    def reverse_op(self) -> Any:
        """There is none: the parameter is saved as it is in memory."""
        raise NotImplementedError("decoded parameters are saved plain")


class EncodeOnLoad(ConversionOps):  # type: ignore[misc]
    """A plain parameter -> codes and norms, and the packed weight put in its place."""

    def __init__(self, make_room: Callable[[Any, str, Any], TqWeight], scale: str) -> None:
        self.make_room = make_room
        self.scale = scale

    @torch.no_grad()
    def convert(
        self,
        input_dict: Mapping[str, Any],
        *args: Any,
        model: Any = None,
        missing_keys: Any = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """{name: weight} -> {name.tq_packed: codes, name.tq_norms: norms}."""
        del args, kwargs
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            home = self.make_room(model, name, missing_keys)
            if tuple(weight.shape) != tuple(home.shape):
                raise InputError(f"`{name}` is {list(weight.shape)}, the model wants {list(home.shape)}")
            codes, norms = encode(weight, home.geometry, self.scale, name)
            result[name + PACKED] = codes.view(home.tq_packed.shape)
            result[name + NORMS] = norms.view(home.tq_norms.shape)
        return result


def encode(weight: Tensor, geometry: Geometry, scale: Any, name: str) -> tuple[Tensor, Tensor]:
    """Codes (rows * groups, bytes a group) and norms (rows, groups) of (..., columns), on the weight's device.

    Always on the CPU, which every machine has, so that the bytes are those of a conversion. Raises InputError
    for a weight that is not finite.
    """
    tables, device = geometry.tables, weight.device
    matrix = weight.reshape(-1, weight.shape[-1])
    rows, columns = matrix.shape
    count = tables.groups(columns)
    codes = torch.empty(rows * count, tables.bytes_per_group, dtype=torch.uint8, device=device)
    norms = torch.empty(rows, count, dtype=torch.float32, device=device)
    step = max(1, _CHUNK_BYTES // (columns * matrix.element_size()))
    for start in range(0, rows, step):
        chunk = matrix[start : start + step].cpu().contiguous()
        try:
            some_codes, some_norms = encode_tensor(chunk, tables, scale=scale, threads=max(1, torch.get_num_threads()))
        except NonFiniteWeight as error:
            raise InputError(f"`{name}` cannot be compressed", why=f"from row {start}: {error}") from error
        codes[start * count : start * count + len(some_codes)] = some_codes
        norms[start : start + len(chunk)] = some_norms
    return codes, norms
