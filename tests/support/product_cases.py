"""Packed weights with random codes, in every format that products take, and activations."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tq_kernels
from numpy.typing import NDArray
from tq_kernels import trellis, uniform
from tq_kernels.floats import narrow
from tq_kernels.product_formats import ProductFormat, of_tq, of_trellis, of_uniform, row_layout

from tqcli.codec import turboquant
from tqcli.codec.trellis import tables

_TQ = {"tq2": (2, 128), "tq3": (3, 128), "tq4": (4, 128), "tq3 g64": (3, 64), "tq4 g32": (4, 32)}
_TRELLIS = {f"trellis{bits}{' plain' if plain else ''}": (bits, plain) for bits in (2, 3, 4) for plain in (False, True)}
_UNIFORM = {f"uniform{bits} g{size}": (bits, size) for bits in (8, 4) for size in (128, 64, 32)}


def tq_tables(bits: int, group_size: int) -> Any:
    return turboquant.tables(bits, group_size, 42)


def trellis_tables(bits: int, plain: bool) -> Any:
    return tables(bits, "none" if plain else "hadamard", 42, 1)


KINDS: Mapping[str, Callable[[], ProductFormat]] = {
    **{name: partial(lambda bits, size: of_tq(tq_tables(bits, size)), *one) for name, one in _TQ.items()},
    **{
        name: partial(lambda bits, plain: of_trellis(trellis_tables(bits, plain)), *one)
        for name, one in _TRELLIS.items()
    },
    **{name: partial(of_uniform, *one) for name, one in _UNIFORM.items()},
}


def random_stored(
    kind: ProductFormat, random: np.random.Generator, rows: int, columns: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Any codes; scales of ordinary sizes, some 0 and some of the least."""
    layout = row_layout(kind, columns)
    codes = random.integers(0, 256, (rows, layout.code_bytes), np.uint8).view(layout.codes)
    halves = random.uniform(0.001, 2.0, (rows, layout.groups)).astype(np.float16)
    halves[random.random(halves.shape) < 0.05] = random.choice([0.0, 2.0**-24])
    if kind.scales != "trellis":
        return codes, halves.astype(layout.scales)
    fields = halves.view(np.uint16) >> (7 - kind.bits)
    starts = random.integers(0, 1 << (8 - kind.bits), halves.shape).astype(np.uint16) << (8 + kind.bits)
    return codes, (fields | starts).astype(np.uint16).view(np.int16)


def activations(like: str, random: np.random.Generator, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    values = random.standard_normal(shape)
    if like == "heavy":
        values = random.standard_t(2, shape) ** 3
    elif like == "one":
        values = np.where(random.random(shape) < 0.01, values, 0.0)
    elif like == "constant":
        values = np.full(shape, 0.1)
    scale = {"tiny": 1e-31, "huge": 1e36}.get(like, 1.0)
    single = np.clip(values * scale, -3e38, 3e38).astype(np.float32)
    return narrow(single, "BF16") if dtype == "BF16" else single


def decoded(name: str, codes: NDArray[Any], scales: NDArray[Any], columns: int) -> NDArray[np.float32]:
    """What the formats' own decoders give."""
    if name in _TQ:
        return tq_kernels.decode(codes, scales, columns, tq_tables(*_TQ[name]))
    if name in _TRELLIS:
        return trellis.decode(codes, scales, columns, trellis_tables(*_TRELLIS[name]))
    bits, size = _UNIFORM[name]
    return uniform.decode(codes, scales, columns, bits, size)
