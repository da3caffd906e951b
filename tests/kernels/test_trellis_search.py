"""The search of the trellis encoder: paths are paths, and none is cheaper."""

import itertools

import numpy as np
import pytest
from support.trellis_cases import matrix, tables_of
from tq_kernels import trellis, trellis_reference
from tq_kernels.floats import widen


def windows_of(codes: np.ndarray, meta: np.ndarray, bits: int) -> np.ndarray:
    """The windows of rows that are one group each."""
    stream = np.concatenate([meta.view(np.uint8), codes], axis=1)
    every_bit = np.unpackbits(stream, axis=1, bitorder="little")
    places = 8 + bits + bits * np.arange(codes.shape[1] * 8 // bits)[:, None] + np.arange(8)
    return np.packbits(every_bit[:, places], axis=2, bitorder="little")[..., 0]


def least_sums(costs: np.ndarray, bits: int) -> np.ndarray:
    """The least sum of costs of any path: costs (groups, weights, 256), by window."""
    states, ways = 1 << (8 - bits), 1 << bits
    sums = np.zeros((len(costs), states), costs.dtype)
    for place in range(costs.shape[1]):
        reached = np.tile(sums, (1, ways)) + costs[:, place]
        sums = reached.reshape(-1, states, ways).min(axis=2)
    return sums.min(axis=1)


def least_errors(values: np.ndarray, levels: np.ndarray, bits: int) -> np.ndarray:
    """The least squared error of any path for each row of values, in float64."""
    return least_sums((values[..., None] - levels) ** 2, bits)


def unit(weight: np.ndarray, tables: trellis.TrellisTables) -> np.ndarray:
    """Unrotated weights in units of the codebook, as the encoder sees them with the scale 1."""
    truth = weight.astype(np.float64)
    deviation = float(trellis_reference.deviation(tables.codebook, tables.bits)) / trellis_reference.UNITS
    return truth * (deviation / np.sqrt((truth**2).mean(axis=1, keepdims=True)))


@pytest.mark.parametrize("bits", trellis.BITS)
def test_no_path_is_much_better(bits, native):
    """Against the exact search in float64: cells and rounded costs lose a third of a percent at most."""
    tables = tables_of(bits, rotated=False)
    weight = matrix("normal", 500, 128, "F32", 1)
    values = unit(weight, tables)
    levels = tables.codebook.astype(np.float64)
    numbers = levels[windows_of(*trellis.encode(weight, "F32", tables), bits)]
    found = ((values - numbers) ** 2).sum(axis=1)
    least = least_errors(values, levels, bits)
    assert (found > least * (1 - 1e-9)).all()
    assert found.sum() < least.sum() * 1.0033
    assert (found < least * 1.05).all()


def test_every_path_of_a_short_group():
    """All paths of four weights at two bits, one by one: the exact search above finds the least of them."""
    tables = tables_of(2, rotated=False)
    levels = tables.codebook.astype(np.float64)
    values = np.random.default_rng(2).standard_normal((3, 4)) * 40
    starts = np.arange(64)[:, None]
    errors = []
    for symbols in itertools.product(range(4), repeat=4):
        state, total = starts, 0.0
        for place, symbol in enumerate(symbols):
            window = state | symbol << 6
            total = total + (values[:, place] - levels[window]) ** 2
            state = window >> 2
        errors.append(total.min(axis=0))
    assert np.allclose(np.min(errors, axis=0), least_errors(values, levels, 2))


@pytest.mark.parametrize("bits", trellis.BITS)
def test_costs_saturate_for_no_path_of_use(bits):
    """The path that 16-bit sums find is the one that unlimited sums find; where a few weights are huge, nearly."""
    tables = tables_of(bits, rotated=False)
    table = trellis_reference.costs(tables.codebook, bits)
    for kind in ("normal", "one-sided", "constant", "alternating", "ramp", "heavy tails"):
        values = unit(matrix(kind, 60, 128, "F32", 3).astype(np.float64), tables)
        middle = len(table) // 2
        cells = (np.floor(values * (1 << (bits - 2))) + middle).clip(0, len(table) - 1).astype(np.int32)
        windows = trellis_reference._path(cells, table, bits)
        plain = (table >> np.uint16(bits)).astype(np.int64)
        found = plain[cells, windows].sum(axis=1)
        least = least_sums(plain[cells], bits)
        if kind == "heavy tails":
            assert found.sum() < least.sum() * 1.01
        else:
            assert np.array_equal(found, least), kind


@pytest.mark.parametrize("bits", trellis.BITS)
def test_more_candidates_never_lose(bits, native):
    weight = matrix("heavy tails", 40, 256, "F32", 4)
    errors = []
    for scales in ((1.0,), (1.0, 0.94, 1.06), (1.0, 0.94, 1.06, 0.9, 1.1)):
        tables = tables_of(bits, rotated=True, scales=scales)
        decoded = trellis.decode(*trellis.encode(weight, "F32", tables), 256, tables)
        errors.append(((weight - decoded) ** 2).reshape(40, 2, 128).sum(axis=2))
    # The winner is picked before its scale is cut to the field.
    for before, after in itertools.pairwise(errors):
        assert (after < before * 1.003).all()
        assert after.sum() < before.sum()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_the_scale_is_that_of_least_squares(dtype, native):
    """No neighbouring scale field gives a smaller error."""
    tables = tables_of(3, rotated=True)
    weight = matrix("normal", 50, 128, dtype, 5)
    truth = widen(weight, dtype).astype(np.float64)
    codes, meta = trellis.encode(weight, dtype, tables)
    error = [((truth - trellis.decode(codes, meta + step, 128, tables)) ** 2).sum(axis=1) for step in (-1, 0, 1)]
    # A scale half-way between two fields is as good as either; the next field but one costs a percent.
    assert (error[1] <= error[0] * 1.0001).all()
    assert (error[1] <= error[2] * 1.0001).all()
