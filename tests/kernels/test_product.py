"""Products of packed weights: one result everywhere, close to what decoding gives, and what is refused."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.product_cases import KINDS, activations, decoded, random_stored, tq_tables
from tq_kernels import product, product_formats, product_reference
from tq_kernels.floats import narrow, widen

CASES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(sorted(KINDS)),
        "rows": st.one_of(st.integers(1, 13), st.integers(14, 70)),
        "columns": st.integers(1, 45).map(lambda sixteenths: 16 * sixteenths),
        "odd": st.integers(0, 15),
        "tokens": st.integers(1, 11),
        "like": st.sampled_from(["normal", "heavy", "one", "constant", "tiny", "huge"]),
        "dtype": st.sampled_from(["F32", "BF16"]),
        "threads": st.integers(1, 3),
        "bits": st.sampled_from([8, 16]),
        "order": st.sampled_from(["lanes", "groups"]),
        "extensions": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
    }
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=CASES)
def test_equal_to_the_reference(case, native):
    random = np.random.default_rng(case["seed"])
    kind = KINDS[case["kind"]]()
    columns = case["columns"] + (0 if kind.tail == "smaller" else case["odd"])
    codes, scales = random_stored(kind, random, case["rows"], columns)
    values = activations(case["like"], random, (case["tokens"], columns), case["dtype"])
    found = product.product(
        kind, codes, scales, values, case["dtype"],
        activation_bits=case["bits"], order=case["order"], threads=case["threads"], extensions=case["extensions"],
    )  # fmt: skip
    everything = np.zeros(case["tokens"], np.int64), np.arange(case["tokens"])
    wide = widen(values, case["dtype"])
    exact = product_reference.product(kind, codes, scales, wide, 1, everything, case["bits"], case["order"])
    assert found.tobytes() == narrow(exact, case["dtype"]).tobytes()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    chosen=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=30),
    in_order=st.booleans(),
    order=st.sampled_from(["lanes", "groups"]),
    extensions=st.booleans(),
)
def test_pairs(kind, chosen, in_order, order, extensions, native):
    """Each pair is what its matrix alone gives for its token, whatever its neighbours are."""
    random = np.random.default_rng(len(chosen))
    weights = KINDS[kind]()
    codes, scales = random_stored(weights, random, 5 * 6, 240)
    values = activations("normal", random, (4, 240), "F32")
    if in_order:
        chosen = sorted(chosen)
    pairs = tuple(np.array([pair[i] for pair in chosen], np.int64) for i in (0, 1))
    found = product.product(
        weights, codes, scales, values, "F32", matrices=5, pairs=pairs, order=order, extensions=extensions
    )
    assert found.shape == (len(chosen), 6)
    for result, (matrix, token) in zip(found, chosen, strict=True):
        some = slice(6 * matrix, 6 * matrix + 6)
        row_codes = codes.reshape(30, -1)[some]
        alone = product.product(weights, row_codes.copy(), scales[some], values[token : token + 1], "F32", order=order)
        assert result.tobytes() == alone.tobytes()


@pytest.mark.parametrize("order", ["lanes", "groups"])
@pytest.mark.parametrize("extensions", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_threads_and_pieces(kind, extensions, order, native):
    """So many rows that they are cut, and 1 to 5 threads."""
    random = np.random.default_rng(3)
    weights = KINDS[kind]()
    codes, scales = random_stored(weights, random, 1203, 1536)
    values = activations("normal", random, (3, 1536), "F32")
    found = [
        product.product(
            weights, codes, scales, values, "F32", order=order, threads=threads, extensions=extensions
        ).tobytes()
        for threads in (1, 2, 5)
    ]
    rows = 1203
    each = [
        product.product(
            weights, codes.reshape(rows, -1)[i : i + 1].copy(), scales[i : i + 1], values, "F32", order=order
        )
        for i in (0, 1, 600, 1201, 1202)
    ]
    whole = np.frombuffer(found[0], np.float32).reshape(3, rows)
    assert found[1:] == [found[0]] * 2
    assert np.array_equal(np.concatenate(each, axis=1), whole[:, [0, 1, 600, 1201, 1202]])


@pytest.mark.parametrize("order", ["lanes", "groups"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_close_to_decoding(kind, bits, order, backend):
    """Rounded normal activations cost 4e-5 or 6e-10 of the result's energy; levels of tq3 and tq4 1e-6 and 1e-5."""
    random = np.random.default_rng(7)
    weights = KINDS[kind]()
    codes, scales = random_stored(weights, random, 64, 752)
    values = activations("normal", random, (9, 752), "F32")
    found = product.product(weights, codes, scales, values, "F32", activation_bits=bits, order=order).astype(np.float64)
    exact = values.astype(np.float64) @ decoded(kind, codes, scales, 752).astype(np.float64).T
    error = ((found - exact) ** 2).sum() / (exact**2).sum()
    levels = {"tq3": 4e-6, "tq4": 3e-5}.get(kind[:3], 0.0)
    assert (1e-6 < error < 1e-4) if bits == 8 else error < 2e-9 + levels


@pytest.mark.parametrize("kind", [name for name in sorted(KINDS) if not KINDS[name]().rotated])
@pytest.mark.parametrize(("bits", "most"), [(8, 127), (16, 127 * 255)])
def test_whole_activations_are_exact(kind, bits, most, backend):
    """Where nothing is rotated, whole numbers up to the greatest are not rounded: the result is that of decoding."""
    random = np.random.default_rng(8)
    weights = KINDS[kind]()
    codes, scales = random_stored(weights, random, 16, 752)
    values = random.integers(-most, most + 1, (2, 752)).astype(np.float32)
    values[:, ::16] = most
    found = product.product(weights, codes, scales, values, "F32", activation_bits=bits)
    matrix = decoded(kind, codes, scales, 752).astype(np.float64)
    bound = np.abs(values).astype(np.float64) @ np.abs(matrix).T * 1e-6
    assert (np.abs(found - values.astype(np.float64) @ matrix.T) <= bound).all()


@pytest.mark.parametrize("order", ["lanes", "groups"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_token_that_is_not_finite(kind, broken, order, backend):
    random = np.random.default_rng(9)
    weights = KINDS[kind]()
    codes, scales = random_stored(weights, random, 5, 240)
    values = activations("normal", random, (3, 240), "F32")
    whole = product.product(weights, codes, scales, values, "F32", order=order)
    values[1, 200] = broken
    found = product.product(weights, codes, scales, values, "F32", order=order)
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[[0, 2]], whole[[0, 2]])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_process_has_threads_of_its_own(native):
    random = np.random.default_rng(2)
    weights = KINDS["trellis3"]()
    codes, scales = random_stored(weights, random, 3000, 1024)
    values = activations("normal", random, (1, 1024), "F32")
    found = product.product(weights, codes, scales, values, "F32", threads=3)
    child = os.fork()
    if child == 0:
        again = product.product(weights, codes, scales, values, "F32", threads=3)
        os._exit(0 if np.array_equal(again, found) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_callers_from_several_threads(native):
    """One has the waiting threads, the others work alone."""
    random = np.random.default_rng(2)
    weights = KINDS["trellis3"]()
    codes, scales = random_stored(weights, random, 3000, 1024)
    values = activations("normal", random, (1, 1024), "F32")
    expected = product.product(weights, codes, scales, values, "F32").tobytes()
    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(product.product, weights, codes, scales, values, "F32", threads=3) for _ in range(60)]
        assert all(task.result().tobytes() == expected for task in tasks)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_zeros(kind, backend):
    weights = KINDS[kind]()
    codes, scales = random_stored(weights, np.random.default_rng(1), 5, 240)
    for value in (0.0, -0.0, 1e-38):
        values = np.full((1, 240), value, np.float32)
        assert not product.product(weights, codes, scales, values, "F32").any()


def test_whole_levels():
    """2 bits are exact; the others lose less than activations of 8 bits do."""
    for bits, limit in ((2, 1e-7), (3, 1.7e-3), (4, 5e-3)):
        levels = tq_tables(bits, 128).centroids
        numbers, unit = product_formats.whole_levels(levels)
        assert np.abs(numbers * unit - levels).max() < limit * levels.max()
        assert np.abs(numbers.astype(int)).max() <= 127


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F16"}, "activations must be"),
        ({"activations": np.zeros((1, 256), np.float64)}, "activations must be"),
        ({"activations": np.zeros(256, np.float32)}, "C-contiguous"),
        ({"activations": np.zeros((1, 250), np.float32)}, "no rows of 250"),
        ({"activations": np.zeros((1, 272), np.float32)}, "need scales"),
        ({"codes": np.zeros((4, 96), np.int8)}, "codes must be uint8"),
        ({"codes": np.zeros((4, 95), np.uint8)}, "bytes of codes"),
        ({"scales": np.zeros((4, 2), np.float16)}, "scales int16"),
        ({"scales": np.zeros((4, 4), np.int16)[:, ::2]}, "C-contiguous"),
        ({"activation_bits": 4}, "8 or 16 bits"),
        ({"order": "columns"}, "by lanes or by groups"),
        ({"matrices": 3}, "matrices need"),
        ({"pairs": (np.zeros(1, np.int32), np.zeros(1, np.int64))}, "int64"),
        ({"pairs": (np.zeros(1, np.int64), np.zeros(2, np.int64))}, "as many"),
    ],
)
def test_refused(change, message, backend):
    given = {
        "codes": np.zeros((4, 96), np.uint8),
        "scales": np.zeros((4, 2), np.int16),
        "activations": np.zeros((1, 256), np.float32),
        "dtype": "F32",
        **change,
    }
    with pytest.raises(ValueError, match=message):
        product.product(KINDS["trellis3"](), **given)


@pytest.mark.parametrize("pair", [(-1, 0), (2, 0), (0, -1), (0, 1)])
def test_pairs_that_are_not_there(pair, backend):
    numbers = tuple(np.array([number], np.int64) for number in pair)
    stored = np.zeros((4, 96), np.uint8), np.zeros((4, 2), np.int16)
    with pytest.raises(ValueError, match="pairs must be numbers below"):
        product.product(KINDS["trellis3"](), *stored, np.zeros((1, 256), np.float32), "F32", matrices=2, pairs=numbers)


def test_groups_of_256_have_no_product():
    with pytest.raises(ValueError, match="not 256"):
        product_formats.of_uniform(8, 256)
