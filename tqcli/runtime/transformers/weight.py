"""`TqWeight` stands where a parameter stood, and keeps it packed.

It is a module named like the parameter (`q_proj.weight`, `experts.gate_up_proj`), so that the names in the state
dict are the names on disk. Modeling code that looks at a weight's shape, dtype or device, or takes `weight[expert]`,
finds what it expects; everything else fails loudly.
"""

from collections.abc import Callable
from math import prod
from typing import Self

import torch
from torch import Tensor, nn
from tq_kernels.tensors import decode_tensor

from tqcli.errors import InputError
from tqcli.runtime.transformers.geometry import Geometry


class TqWeight(nn.Module):
    """A packed weight of `shape`, decoded to `dtype`.

    tq_packed: uint8 of any shape that holds (rows * groups, bytes a group). tq_norms: float32, (rows, groups) in any
    shape. Both keep the shape they have on disk, so that loading copies nothing.
    """

    tq_packed: nn.Parameter
    tq_norms: nn.Parameter

    def __init__(
        self,
        shape: tuple[int, ...],
        geometry: Geometry,
        dtype: torch.dtype,
        packed_shape: tuple[int, ...],
        norms_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.weight_shape = torch.Size(shape)
        self.geometry = geometry
        self.decoded_dtype = dtype
        self.tq_packed = _empty(packed_shape, torch.uint8)
        self.tq_norms = _empty(norms_shape, torch.float32)
        # Tells the model's `_init_weights` that there is nothing here to initialise.
        self._is_hf_initialized = True

    @property
    def shape(self) -> torch.Size:
        """Of the decoded weight."""
        return self.weight_shape

    @property
    def ndim(self) -> int:
        """Of the decoded weight."""
        return len(self.weight_shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the decoded weight."""
        return self.decoded_dtype

    @property
    def device(self) -> torch.device:
        """Where the codes are; decoding happens there."""
        return self.tq_packed.device

    def decode(self) -> Tensor:
        """The whole weight."""
        return self._decode(self.tq_packed, self.tq_norms).view(self.weight_shape)

    def __getitem__(self, index: int | Tensor) -> Tensor:
        """Decode along the first dimension: an expert, a row, or several by a tensor of indices."""
        if not isinstance(index, (int, Tensor)):
            raise TypeError(f"a packed weight takes a number or a tensor of them, not {type(index).__name__}")
        items = self.weight_shape[0]
        packed = self.tq_packed.view(items, -1)[index]
        norms = self.tq_norms.view(items, -1)[index]
        return self._decode(packed, norms).view(*norms.shape[:-1], *self.weight_shape[1:])

    def slice_rows(self, start: int, stop: int) -> Tensor:
        """Decode weight[start:stop]."""
        items = self.weight_shape[0]
        packed = self.tq_packed.view(items, -1)[start:stop]
        norms = self.tq_norms.view(items, -1)[start:stop]
        return self._decode(packed, norms).view(-1, *self.weight_shape[1:])

    def _decode(self, packed: Tensor, norms: Tensor) -> Tensor:
        columns, tables = self.weight_shape[-1], self.geometry.tables
        count = tables.groups(columns)
        if packed.is_meta:
            raise InputError("a packed weight was read while it is offloaded", why="only its owner can fetch it")
        codes = packed.detach().view(-1, tables.bytes_per_group)
        return decode_tensor(
            codes, norms.detach().view(-1, count), columns, tables, self.decoded_dtype, threads=_threads()
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, but never convert, what is packed: `model.to(dtype)` changes what is decoded."""
        self.decoded_dtype = fn(torch.empty(0, dtype=self.decoded_dtype)).dtype

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """For `print(model)`."""
        geometry = self.geometry
        return f"{tuple(self.weight_shape)}, bits={geometry.bits}, group_size={geometry.group_size}"


def stored_shapes(
    shape: tuple[int, ...], geometry: Geometry, *, by_item: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of codes and norms: two matrices as on disk, or, by item, one pair of matrices for each shape[0]."""
    tables = geometry.tables
    count = tables.groups(shape[-1])
    lead = shape[:1] if by_item else ()
    rows = prod(shape[len(lead) : -1])
    return (*lead, rows * count, tables.bytes_per_group), (*lead, rows, count)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def _threads() -> int:
    return max(1, torch.get_num_threads())
