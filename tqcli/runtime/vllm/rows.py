"""`Rows`: a tensor that is not there. Its elements stand for those of a weight on disk, or of one that is being loaded.

vLLM's loaders do everything to a weight with a handful of operations: they rename it, take the slices that a layer, an
expert or a rank of a tensor-parallel group needs, take the matching slices of a parameter, and copy the one to the
other. Where both are `Rows`, nothing is decoded: each keeps count of which rows and columns it stands for, and the copy
moves packed rows. So no rule about names, fused layers, experts or ranks has to be repeated here.

A weight on disk that meets anything else (a plain parameter, an operation that is no slice) is decoded at that moment:
a module that takes no packed weights gets what it would have got from the decoded checkpoint. Left out: what rows hold
(`sources`), and where they go (`home`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tqcli.errors import InputError

_aten = torch.ops.aten
# Slices along rows; the number is the place of the dimension among the arguments. Slices of columns are counted apart.
_BY_ROWS: Mapping[Any, int] = {
    _aten.slice.Tensor: 1,
    _aten.select.int: 1,
    _aten.unbind.int: 1,
    _aten.split.Tensor: 2,
    _aten.split_with_sizes.default: 2,
    _aten.unsqueeze.default: 1,
}
_SAME = (_aten.detach.default, _aten.alias.default)


class Source(Protocol):
    """A weight that can be read by rows."""

    @property
    def name(self) -> str:
        """On disk, for messages."""

    def decode(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows, by their numbers (n,) -> (n, columns)."""


class Target(Protocol):
    """A weight that is being filled."""

    def receive(self, there: "Rows", given: "Rows | Tensor") -> None:
        """Take rows of the same shape."""

    def receive_zeros(self, there: "Rows") -> None:
        """Rows that belong to nothing on disk."""


class Rows(Tensor):
    """(..., columns). numbers: int64 (...), which rows of `of` these are. first: the first of their columns in it."""

    of: Any
    numbers: Tensor
    first: int

    def __new__(
        cls, of: Any, numbers: Tensor, first: int, columns: int, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """Of the shape, dtype and device that the weight would have."""
        shape = (*numbers.shape, columns)
        made: Self = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)  # noqa: SLF001  # torch's way
        made.of, made.numbers, made.first = of, numbers, first
        return made

    def __init__(self, *given: Any) -> None:
        del given

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"Rows({tuple(self.shape)} of {self.of})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch leaves arguments out
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Slices stay rows; a copy moves them; everything else sees what they decode to."""
        del types
        if func in _SAME:
            return _like(args[0], args[0].numbers)
        if func in _BY_ROWS and (found := _slice(func, args, kwargs or {})) is not None:
            return found
        if func is _aten.copy_.default and isinstance(args[0], Rows):
            args[0].of.receive(args[0], args[1])
            return args[0]
        if func in (_aten.fill_.Scalar, _aten.zero_.default) and isinstance(args[0], Rows) and not any(args[1:]):
            args[0].of.receive_zeros(args[0])
            return args[0]
        if func is _aten._to_copy.default and (kwargs or {}).get("device") == torch.device("meta"):  # noqa: SLF001
            return _like(args[0], args[0].numbers)
        return func(*tree_map(_decoded, args), **tree_map(_decoded, kwargs or {}))


def rows_of(of: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Rows:
    """All of a weight of that shape, its rows numbered in order."""
    numbers = torch.arange(torch.Size(shape[:-1]).numel(), device="cpu").view(shape[:-1])
    return Rows(of, numbers, 0, shape[-1], dtype, device)


def _like(rows: Rows, numbers: Tensor, first: int | None = None, columns: int | None = None) -> Rows:
    return Rows(
        rows.of,
        numbers,
        rows.first if first is None else first,
        rows.shape[-1] if columns is None else columns,
        rows.dtype,
        rows.device,
    )


def _slice(func: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """None where it is none that stays rows."""
    rows, place = args[0], _BY_ROWS[func]
    if not isinstance(rows, Rows) or options:
        return None
    dim = args[place] if len(args) > place else 0
    last = rows.ndim - 1
    dim = dim + rows.ndim + (func is _aten.unsqueeze.default) if dim < 0 else dim
    if func is _aten.slice.Tensor and dim == last:
        begin, end, step = _bounds(args, rows.shape[-1])
        return _like(rows, rows.numbers, rows.first + begin, max(0, end - begin)) if step == 1 else None
    if dim > last or (dim == last and func is not _aten.unsqueeze.default):
        return None
    given = (*args[1:place], dim, *args[place + 1 :])
    found = func(rows.numbers, *given)
    if isinstance(found, Tensor):
        return _like(rows, found)
    return [_like(rows, one) for one in found]


def _bounds(args: tuple[Any, ...], size: int) -> tuple[int, int, int]:
    begin, end, step = (list(args[2:5]) + [None] * 3)[:3]
    return slice(begin, end, step).indices(size)


def _decoded(one: Any) -> Any:
    """What the operation is to see instead."""
    if not isinstance(one, Rows):
        return one
    decode = getattr(one.of, "decode", None)
    if decode is None:
        raise InputError(
            f"{one.of} was used before it was loaded",
            why="nothing but loading by vLLM's usual loader can be done to packed weights",
            fix="serve without --load-format",
        )
    found: Tensor = decode(one.numbers.reshape(-1), one.dtype)
    return found[:, one.first : one.first + one.shape[-1]].reshape(one.shape)
