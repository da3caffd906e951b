"""What differs between the formats of packed weights in memory: names, shapes, dtypes, and who decodes.

A packed weight is two tensors: codes, and what goes with each group of them, here called scales: norms, or scales, or
scales with a start state. Left out: where they lie on disk (`headers`), and whether their sizes are right (`geometry`).
"""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor
from tq_kernels import NonFiniteWeight, tensors, trellis_tensors, uniform_tensors
from tq_kernels.tensor_rows import as_array, by_rows, dtype_name

from tqcli.codec import turboquant
from tqcli.formats.native import PAIRS
from tqcli.formats.native_section import NativeFormat
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform

Shape = tuple[int, ...]

_DTYPES: Mapping[str, torch.dtype] = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "F32": torch.float32,
}


def leaves(stored_as: NativeFormat) -> tuple[str, str]:
    """Names of the two parameters, such as `tq_packed` and `tq_norms`."""
    codes, scales = PAIRS[stored_as.format]
    return codes.removeprefix("."), scales.removeprefix(".")


def stored_dtypes(stored_as: NativeFormat) -> tuple[torch.dtype, torch.dtype]:
    """Of codes and scales."""
    codes, scales = stored_as.stored("", (1, 128), "BF16")
    return _DTYPES[codes.dtype], _DTYPES[scales.dtype]


def stored_shapes(shape: Shape, stored_as: NativeFormat, *, by_item: bool) -> tuple[Shape, Shape]:
    """Shapes of codes and scales: two matrices as on disk, or, by item, one pair of matrices for each shape[0]."""
    lead = shape[:1] if by_item else ()
    rows = prod(shape[len(lead) : -1])
    codes, scales = stored_as.stored("", (rows, shape[-1]), "BF16")
    return (*lead, *codes.shape), (*lead, *scales.shape)


def empty_stored(rows: int, columns: int, stored_as: NativeFormat, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes and scales to be filled, as two matrices."""
    shapes, dtypes = stored_shapes((rows, columns), stored_as, by_item=False), stored_dtypes(stored_as)
    codes, scales = (
        torch.empty(shape, dtype=dtype, device=device) for shape, dtype in zip(shapes, dtypes, strict=True)
    )
    return codes, scales


def bytes_a_weight(shape: Shape, stored_as: NativeFormat) -> float:
    """Of codes and scales together, for a weight of that shape."""
    return sum(one.nbytes for one in stored_as.stored("", shape, "BF16")) / prod(shape)


def decode_packed(
    stored_as: NativeFormat, codes: Tensor, scales: Tensor, columns: int, dtype: torch.dtype, threads: int = 1
) -> Tensor:
    """Whole rows -> (rows, columns) of dtype, on their device.

    codes, scales: contiguous, of any shape with a row's numbers side by side. On the CPU the native kernels read them
    where they are; every other device gets the same bits from plain torch.
    """
    each_codes, each_scales = (prod(one.shape) for one in stored_as.stored("", (1, columns), "BF16"))
    rows = codes.detach().view(-1, each_codes), scales.detach().view(-1, each_scales)
    return _DECODERS[type(stored_as)](stored_as, *rows, columns, dtype, threads)


def encode_packed(stored_as: NativeFormat, weight: Tensor, threads: int = 1) -> tuple[Tensor, Tensor]:
    """(rows, columns) -> codes and scales as `stored` describes them, on the weight's device.

    Always on the CPU, which every machine has, so that the bytes are those of a conversion. Raises NonFiniteWeight.
    """
    rows, columns = weight.shape
    found = empty_stored(rows, columns, stored_as, torch.device("cpu"))
    targets = [as_array(tensor).reshape(rows, -1) for tensor in found]
    matrix, name = as_array(weight.cpu().contiguous()), dtype_name(weight.dtype)

    def encode_rows(start: int, stop: int) -> None:
        try:
            pieces = stored_as.encode(matrix[start:stop], name)
        except NonFiniteWeight as error:
            raise type(error)(start + error.row) from error
        for target, piece in zip(targets, pieces, strict=True):
            target[start:stop] = piece.reshape(stop - start, -1)

    by_rows(encode_rows, rows, columns * weight.element_size(), threads)
    codes, scales = (tensor.to(weight.device) for tensor in found)
    return codes, scales


def _decode_tq(stored_as: Tq, codes: Tensor, scales: Tensor, columns: int, dtype: torch.dtype, threads: int) -> Tensor:
    tables = turboquant.tables(stored_as.bits, stored_as.group_size, stored_as.seed)
    return tensors.decode_tensor(codes, scales, columns, tables, dtype, threads=threads)


def _decode_trellis(
    stored_as: Trellis, codes: Tensor, scales: Tensor, columns: int, dtype: torch.dtype, threads: int
) -> Tensor:
    return trellis_tensors.decode_tensor(codes, scales, columns, stored_as.tables, dtype, threads=threads)


def _decode_uniform(
    stored_as: Uniform, codes: Tensor, scales: Tensor, columns: int, dtype: torch.dtype, threads: int
) -> Tensor:
    bits, group_size = stored_as.bits, stored_as.group_size
    return uniform_tensors.decode_tensor(codes, scales, columns, bits, group_size, dtype, threads=threads)


_DECODERS: Mapping[type[NativeFormat], Callable[..., Tensor]] = {
    Tq: _decode_tq,
    Trellis: _decode_trellis,
    Uniform: _decode_uniform,
}
