"""Products of packed weights that are torch tensors on the CPU; the native library reads them where they are.

The arithmetic is that of `tq_kernels.product`. Left out: other devices, and what to do where a product cannot be had.
"""

import torch
from torch import Tensor

from tq_kernels.backends import selected
from tq_kernels.product import ActivationBits, Order, run
from tq_kernels.product_formats import ProductFormat, row_layout
from tq_kernels.types import FloatDtype

_DTYPES: dict[torch.dtype, FloatDtype] = {torch.bfloat16: "BF16", torch.float32: "F32"}


def takes(tensor: Tensor) -> bool:
    """Whether activations are of a dtype and on a device that products take, and the native library is there."""
    return tensor.dtype in _DTYPES and tensor.device.type == "cpu" and selected()[1] is not None


def product_tensor(
    weights: ProductFormat,
    codes: Tensor,
    scales: Tensor,
    activations: Tensor,
    *,
    matrices: int = 1,
    pairs: tuple[Tensor, Tensor] | None = None,
    activation_bits: ActivationBits = 16,
    order: Order = "lanes",
    threads: int = 1,
) -> Tensor:
    """(tokens, rows), or (pairs, rows) for pairs of matrix and token numbers; of the activations' dtype.

    codes, scales: contiguous CPU tensors of any shape with `matrices` matrices of rows one behind the other, as the
    format stores them. activations: (tokens, columns). pairs: two int64 vectors; see `tq_kernels.product.product`.
    Raises ValueError where sizes do not fit or the native library is not there.
    """
    library = selected()[1]
    if library is None or not takes(activations):
        raise ValueError(f"there is no product for {activations.dtype} on {activations.device}")
    tokens, columns = activations.shape
    rows = _rows(weights, codes, scales, columns, matrices)
    given = activations.contiguous()
    numbers = (None, None) if pairs is None else (_vector(pairs[0]), _vector(pairs[1]))
    count = tokens if numbers[0] is None else len(numbers[0])
    results = torch.empty(count, rows, dtype=activations.dtype)
    first, second = (None if one is None else one.data_ptr() for one in numbers)
    run(
        library, weights, _DTYPES[activations.dtype], codes.data_ptr(), scales.data_ptr(), (matrices, rows, columns),
        given.data_ptr(), tokens, first, second, count, results.data_ptr(), activation_bits, order, threads,
    )  # fmt: skip
    return results


def _rows(weights: ProductFormat, codes: Tensor, scales: Tensor, columns: int, matrices: int) -> int:
    layout = row_layout(weights, columns)
    all_rows = scales.numel() // layout.groups
    if scales.numel() != all_rows * layout.groups or codes.numel() != all_rows * layout.code_bytes:
        raise ValueError(f"{columns} columns do not fit codes {tuple(codes.shape)} and scales {tuple(scales.shape)}")
    if matrices < 1 or all_rows % matrices:
        raise ValueError(f"{all_rows} rows are no {matrices} equal matrices")
    if codes.element_size() != layout.codes.itemsize or scales.element_size() != layout.scales.itemsize:
        raise ValueError(f"codes and scales must be {layout.codes} and {layout.scales}")
    if not (codes.is_contiguous() and scales.is_contiguous() and codes.device == scales.device == torch.device("cpu")):
        raise ValueError("codes and scales must be contiguous, on the CPU")
    return all_rows // matrices


def _vector(numbers: Tensor) -> Tensor:
    if numbers.dtype != torch.int64 or numbers.ndim != 1 or numbers.device.type != "cpu":
        raise ValueError(f"pairs must be vectors of int64 on the CPU, not {numbers.dtype} {tuple(numbers.shape)}")
    return numbers.contiguous()
