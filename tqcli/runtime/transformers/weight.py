"""`TqWeight` stands where a parameter stood, and keeps it packed.

It is a module named like the parameter (`q_proj.weight`, `experts.gate_up_proj`), so that the names in the state
dict are the names on disk. Modeling code that looks at a weight's shape, dtype or device, or takes `weight[expert]`,
finds what it expects; everything else fails loudly.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from tqcli.errors import InputError
from tqcli.formats.native_section import NativeFormat
from tqcli.runtime.packed import Shape, decode_packed, leaves, stored_dtypes
from tqcli.runtime.products import Activations, can_multiply, multiply


class TqWeight(nn.Module):
    """A packed weight of `shape`, decoded to `dtype`.

    It holds two parameters, named and typed as the format has it: codes, such as `tq_packed`, and what goes with each
    group of them, such as `tq_norms`. Both keep the shape they have on disk, so that loading copies nothing.
    activations: how it is multiplied; see `products`. threads: of products.
    """

    activations: Activations = "float"
    threads: int = 1

    def __init__(
        self, shape: Shape, stored_as: NativeFormat, dtype: torch.dtype, codes_shape: Shape, scales_shape: Shape
    ) -> None:
        super().__init__()
        self.weight_shape = torch.Size(shape)
        self.stored_as = stored_as
        self.decoded_dtype = dtype
        self._leaves = leaves(stored_as)
        for leaf, size, kind in zip(self._leaves, (codes_shape, scales_shape), stored_dtypes(stored_as), strict=True):
            self.register_parameter(leaf, _empty(size, kind))
        # Tells the model's `_init_weights` that there is nothing here to initialise.
        self._is_hf_initialized = True

    @property
    def parts(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Codes, and what goes with them."""
        codes, scales = self._leaves
        return getattr(self, codes), getattr(self, scales)

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
        return self.parts[0].device

    def decode(self) -> Tensor:
        """The whole weight."""
        return self._decode(*self.parts).view(self.weight_shape)

    def __getitem__(self, index: int | Tensor) -> Tensor:
        """Decode along the first dimension: an expert, a row, or several by a tensor of indices."""
        if not isinstance(index, (int, Tensor)):
            raise TypeError(f"a packed weight takes a number or a tensor of them, not {type(index).__name__}")
        codes, scales = (part[index] for part in self._by_item())
        return self._decode(codes, scales).view(*codes.shape[:-1], *self.weight_shape[1:])

    def slice_rows(self, start: int, stop: int) -> Tensor:
        """Decode weight[start:stop]."""
        return self._decode(*(part[start:stop] for part in self._by_item())).view(-1, *self.weight_shape[1:])

    def multiplies(self, hidden: Tensor, share: float = 1.0) -> bool:
        """Whether `multiply` is to be used for activations (..., columns) instead of decoding.

        share: of the tokens that an item of a weight of three dimensions meets, on average.
        """
        if self.activations == "float" or self.device.type != "cpu":
            return False
        return can_multiply(self.stored_as, hidden, share * hidden.numel() / max(1, hidden.shape[-1]))

    def multiply(self, hidden: Tensor, pairs: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(..., columns) -> (..., rows), activations rounded to integers; the weight is not decoded.

        pairs: numbers of items of a weight of three dimensions and of tokens, (n,) each; the result is (n, rows).
        """
        given = hidden.reshape(-1, self.weight_shape[-1])
        matrices = 1 if pairs is None else self.weight_shape[0]
        found = multiply(
            self.stored_as, *self.parts, given, self.activations, threads=self.threads, matrices=matrices, pairs=pairs
        )
        return found if pairs is not None else found.view(*hidden.shape[:-1], -1)

    def _by_item(self) -> tuple[Tensor, Tensor]:
        codes, scales = (part.detach().view(self.weight_shape[0], -1) for part in self.parts)
        return codes, scales

    def _decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        if codes.is_meta:
            raise InputError("a packed weight was read while it is offloaded", why="only its owner can fetch it")
        columns = self.weight_shape[-1]
        return decode_packed(self.stored_as, codes, scales, columns, self.decoded_dtype, threads=_threads())

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
        return f"{tuple(self.weight_shape)}, {self.stored_as.label}"


def _empty(shape: Shape, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def _threads() -> int:
    return max(1, torch.get_num_threads())
