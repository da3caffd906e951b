"""Matrices, tables and stored weights for the trellis tests."""

import numpy as np
from hypothesis import strategies as st
from tq_kernels import trellis
from tq_kernels.floats import narrow

from tqcli.codec import hadamard
from tqcli.codec.trellis_codebooks import codebook

DTYPES = ("BF16", "F16", "F32")

KINDS = {
    "normal": lambda values, random: values * 0.02,
    "heavy tails": lambda values, random: random.standard_t(2, values.shape) * 0.005,
    "wide": lambda values, random: values * 20,
    "tiny": lambda values, random: values * 1e-30,
    "denormal": lambda values, random: values * 1e-39,
    "scales from nothing up": lambda values, random: values * np.exp2(random.integers(-40, -10, (len(values), 1))),
    "sparse": lambda values, random: values * (random.random(values.shape) < 0.02),
    "constant": lambda values, random: np.full_like(values, 0.25),
    "one-sided": lambda values, random: np.abs(values),
    "alternating": lambda values, random: np.where(np.indices(values.shape)[1] % 2, 0.5, -0.5),
    "zero": lambda values, random: np.zeros_like(values),
    "negative zero": lambda values, random: np.where(random.random(values.shape) < 0.5, -0.0, values),
    "spikes": lambda values, random: np.where(random.random(values.shape) < 0.01, -8.0, 1e-3),
    "one spike": lambda values, random: np.where(np.indices(values.shape)[1] == 3, 10.0, 0.0),
    "ramp": lambda values, random: np.broadcast_to(np.linspace(-1, 1, values.shape[1]), values.shape),
}


def matrix(kind: str, rows: int, columns: int, dtype: str, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = KINDS[kind](random.standard_normal((rows, columns)), random)
    with np.errstate(under="ignore"):
        return narrow(np.ascontiguousarray(values, dtype=np.float32), dtype)


def tables_of(bits: int, rotated: bool, scales: tuple[float, ...] = (1.0,)) -> trellis.TrellisTables:
    signs = hadamard.signs(128, 42)[0] if rotated else None
    return trellis.TrellisTables(bits, codebook(bits), signs, scales)


def columns_of() -> st.SearchStrategy[int]:
    return st.integers(1, 34).map(lambda sixteenths: 16 * sixteenths)


def random_stored(random: np.random.Generator, rows: int, columns: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and group numbers of any bits, but no infinite scale."""
    codes = random.integers(0, 256, (rows, columns * bits // 8), dtype=np.uint8)
    shape = (rows, len(trellis.groups(columns)))
    field = random.integers(0, 31 << (bits + 3), shape)
    start = random.integers(0, 1 << (8 - bits), shape)
    return codes, (field | start << (bits + 8)).astype(np.uint16).view(np.int16)
