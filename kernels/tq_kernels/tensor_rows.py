"""Torch tensors and the kernels that take NumPy arrays and run in one thread: views of one as the other, and threads.

Every family treats rows on their own, so a matrix goes through in pieces of rows, on any number of threads, and the
bytes are the same. Left out: what the pieces are.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tq_kernels.types import FloatDtype

_DTYPES: Mapping[torch.dtype, FloatDtype] = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
# Codes of some rows, and what goes with them -> those rows.
DecodeRows = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
# Small enough to stay in a core's cache, large enough that starting a thread does not count.
_PIECE_BYTES = 2 << 20


def dtype_name(dtype: torch.dtype) -> FloatDtype:
    """As the kernels call it. TypeError for a dtype that they do not take."""
    if dtype not in _DTYPES:
        raise TypeError(f"the codec takes bfloat16, float16 and float32, not {dtype}")
    return _DTYPES[dtype]


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A CPU tensor's own memory as an array of the same shape; bfloat16 as uint16."""
    detached = tensor.detach()
    if detached.dtype != torch.bfloat16:
        return detached.numpy()
    return detached.view(torch.int16).numpy().view(np.uint16)


def by_rows(work: Callable[[int, int], None], rows: int, row_bytes: int, threads: int) -> None:
    """Call work(start, stop) for pieces of all rows, on up to `threads` threads. row_bytes: of a row's result.

    Raises what the first of the failing pieces raises. ValueError unless threads is positive.
    """
    if threads < 1:
        raise ValueError(f"threads must be positive, not {threads}")
    step = max(1, _PIECE_BYTES // max(1, row_bytes))
    pieces = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    if threads == 1 or len(pieces) < 2:
        for start, stop in pieces:
            work(start, stop)
        return
    with ThreadPoolExecutor(min(threads, len(pieces))) as pool:
        for _ in pool.map(lambda piece: work(*piece), pieces):
            pass


def decode_pair(
    weight: Tensor,
    pair: tuple[Tensor, Tensor],
    decode: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]],
    threads: int,
) -> None:
    """Fill `weight`, (rows, columns) on the CPU, with what decode gives for the same rows of both of the pair."""
    target, codes, beside = as_array(weight), as_array(pair[0]), as_array(pair[1])

    def work(start: int, stop: int) -> None:
        target[start:stop] = decode(codes[start:stop], beside[start:stop])

    by_rows(work, len(codes), weight.shape[1] * weight.element_size(), threads)


def check_pair(codes: Tensor, scales: Tensor, scales_dtype: torch.dtype) -> None:
    """TypeError or ValueError unless the two are contiguous matrices of as many rows, on one device."""
    if scales.dtype != scales_dtype:
        raise TypeError(f"what goes with the codes must be {scales_dtype}, not {scales.dtype}")
    if codes.device != scales.device:
        raise ValueError(f"codes are on {codes.device}, what goes with them on {scales.device}")
    if codes.ndim != 2 or scales.ndim != 2 or len(codes) != len(scales):
        raise ValueError(f"expected two matrices of as many rows, got {tuple(codes.shape)} and {tuple(scales.shape)}")
    if not (codes.is_contiguous() and scales.is_contiguous()):
        raise ValueError("both tensors must be contiguous")
