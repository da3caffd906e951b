"""Products of packed weights and vectors of activations, without decoding to floating point: most of the time of
generating text, and much of the time of reading a prompt.

Activations become whole numbers, one scale a group of columns; weights are whole numbers already. A rotation is
applied to the activations, once, instead of to every row of weights: it is orthogonal. Rounding activations to 8 bits
costs some 4e-5 of the result's energy; to 16 bits nothing that float32 sums would not lose as well. A result is the
same to the bit on every backend and for any number of threads: the arithmetic is told in
`tq_kernels.product_reference`. It knows two orders of sums: by lanes, which suits a few tokens, and by groups, which
suits some dozens to a matrix.

Left out: where weights lie and how models call this (`tqcli.runtime`), and hundreds of tokens at a time, for which
decoding is faster.
"""

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tq_kernels import product_reference
from tq_kernels.backends import selected
from tq_kernels.floats import NUMPY, narrow, widen
from tq_kernels.library import DTYPES, Library, check
from tq_kernels.product_formats import ProductFormat, row_layout
from tq_kernels.types import FloatDtype

_CODES = {"trellis": 0, "table": 1, "bytes": 2}
_SCALES = {"trellis": 0, "float32": 1, "float16": 2}
_TAILS = {"smaller": 0, "padded": 1, "short": 2}
_POINTER, _SMALL, _LARGE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

ActivationBits = Literal[8, 16]
Order = Literal["lanes", "groups"]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


class _Format(ctypes.Structure):
    """struct TqProductFormat of kernels/cpu/product.h."""

    _fields_ = (
        ("codes", _SMALL),
        ("scales", _SMALL),
        ("tail", _SMALL),
        ("bits", _SMALL),
        ("group_size", _SMALL),
        ("rotated", _SMALL),
        ("table", _POINTER),
        ("signs_before", _POINTER),
        ("signs_after", _POINTER),
        ("factors", ctypes.c_float * 4),
    )


def product(
    weights: ProductFormat,
    codes: NDArray[Any],
    scales: NDArray[Any],
    activations: NDArray[Any],
    dtype: FloatDtype,
    *,
    matrices: int = 1,
    pairs: Pairs | None = None,
    activation_bits: ActivationBits = 16,
    order: Order = "lanes",
    threads: int = 1,
    extensions: bool = True,
) -> NDArray[Any]:
    """Each token's product with a packed matrix, (tokens, rows) of `dtype`.

    codes, scales: as the format stores them, C-contiguous, of `matrices` matrices of equal shape, one behind the other.
    activations: (tokens, columns), float32 or, for BF16, uint16. pairs: numbers of matrices and of tokens, two int64
    vectors; row p of the result then is matrix pairs[0][p] times token pairs[1][p], and neighbours of the same matrix
    share the work of reading it. Without pairs every token meets the only matrix. order: of sums. extensions: False to
    do without instructions that only some processors of an instruction set have; the result is the same.
    A token with NaN or Inf gives NaN. Raises ValueError where shapes, types or memory layouts do not fit.
    """
    if activation_bits not in get_args(ActivationBits):
        raise ValueError(f"activations are rounded to 8 or 16 bits, not {activation_bits}")
    if order not in get_args(Order):
        raise ValueError(f"sums are by lanes or by groups, not by {order}")
    rows = _check(weights, codes, scales, activations, dtype, matrices)
    tokens = len(activations) if pairs is None else _check_pairs(pairs, matrices, len(activations))
    results = np.empty((tokens, rows), NUMPY[dtype])
    _, library = selected()
    if library is None:
        chosen = _all_pairs(matrices, len(activations)) if pairs is None else pairs
        wide = widen(activations, dtype)
        values = product_reference.product(weights, codes, scales, wide, matrices, chosen, activation_bits, order)
        return narrow(values, dtype)
    first, second = (None, None) if pairs is None else (pairs[0].ctypes.data, pairs[1].ctypes.data)
    run(
        library, weights, dtype, codes.ctypes.data, scales.ctypes.data, (matrices, rows, activations.shape[1]),
        activations.ctypes.data, len(activations), first, second, tokens, results.ctypes.data, activation_bits, order,
        threads, extensions,
    )  # fmt: skip
    return results


def run(
    library: Library,
    weights: ProductFormat,
    dtype: FloatDtype,
    codes: int,
    scales: int,
    shape: tuple[int, int, int],
    activations: int,
    tokens: int,
    matrix_numbers: int | None,
    token_numbers: int | None,
    pairs: int,
    results: int,
    activation_bits: ActivationBits,
    order: Order,
    threads: int,
    extensions: bool = True,
) -> None:
    """The native function on addresses of memory whose sizes the caller has checked. shape: matrices, rows, columns."""
    status = _function(library)(
        _native(weights), library.instruction_set, extensions, DTYPES[dtype], activation_bits // 8, order == "groups",
        codes, scales, *shape, activations, tokens, matrix_numbers, token_numbers, pairs, results, threads,
    )  # fmt: skip
    check(status)


def groups_are_fast() -> bool:
    """Whether this processor has what sums by groups are made for: AVX-512 with VBMI and VNNI."""
    _, library = selected()
    if library is None:
        return False
    return library.function("tq_product_groups_are_fast", _SMALL)(library.instruction_set) == 1


@lru_cache(maxsize=8)
def _function(library: Library) -> Callable[..., int]:
    return library.function(
        "tq_product", _POINTER, _SMALL, _SMALL, _SMALL, _SMALL, _SMALL, _POINTER, _POINTER, _LARGE, _LARGE, _LARGE,
        _POINTER, _LARGE, _POINTER, _POINTER, _LARGE, _POINTER, _SMALL,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _native(weights: ProductFormat) -> Any:
    """The format as the library takes it; the key keeps the arrays that it points to."""
    pointers = [None if one is None else one.ctypes.data for one in weights.arrays()]
    names = _CODES[weights.codes], _SCALES[weights.scales], _TAILS[weights.tail]
    factors = (ctypes.c_float * 4)(*weights.factors)
    return ctypes.byref(_Format(*names, weights.bits, weights.group_size, weights.rotated, *pointers, factors))


def _all_pairs(matrices: int, tokens: int) -> Pairs:
    if matrices != 1:
        raise ValueError(f"{matrices} matrices need pairs")
    return np.zeros(tokens, np.int64), np.arange(tokens, dtype=np.int64)


def _check(
    weights: ProductFormat,
    codes: NDArray[Any],
    scales: NDArray[Any],
    activations: NDArray[Any],
    dtype: FloatDtype,
    matrices: int,
) -> int:
    """Rows of a matrix."""
    if dtype not in ("BF16", "F32") or activations.dtype != NUMPY[dtype]:
        raise ValueError(f"activations must be float32, or BF16 as uint16, not {dtype} as {activations.dtype}")
    if activations.ndim != 2 or not activations.flags.c_contiguous:
        raise ValueError(f"activations must be a C-contiguous (tokens, columns), not {activations.shape}")
    layout = row_layout(weights, activations.shape[1])
    if codes.dtype != layout.codes or scales.dtype != layout.scales:
        raise ValueError(f"codes must be {layout.codes} and scales {layout.scales}, not {codes.dtype}, {scales.dtype}")
    if not (codes.flags.c_contiguous and scales.flags.c_contiguous):
        raise ValueError("codes and scales must be C-contiguous")
    if matrices < 1 or scales.ndim != 2 or scales.shape[1] != layout.groups or len(scales) % matrices:
        raise ValueError(f"{matrices} matrices need scales (rows, {layout.groups}), got {scales.shape}")
    if codes.size != len(scales) * layout.code_bytes:
        raise ValueError(f"{len(scales)} rows take {layout.code_bytes} bytes of codes each, got {codes.shape}")
    return len(scales) // matrices


def _check_pairs(pairs: Pairs, matrices: int, tokens: int) -> int:
    for numbers, limit in zip(pairs, (matrices, tokens), strict=True):
        if numbers.dtype != np.int64 or numbers.ndim != 1 or not numbers.flags.c_contiguous:
            raise ValueError(f"pairs must be two vectors of int64, not {numbers.dtype} {numbers.shape}")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < limit:
            raise ValueError(f"pairs must be numbers below {limit}")
    if len(pairs[0]) != len(pairs[1]):
        raise ValueError(f"pairs must be as many matrices as tokens, not {len(pairs[0])} and {len(pairs[1])}")
    return len(pairs[0])
