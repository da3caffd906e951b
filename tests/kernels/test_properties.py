"""What holds for any weights: shapes, independence of threads and of neighbours, errors within bounds."""

import numpy as np
import pytest
import tq_kernels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tqcli.codec import turboquant

# Mean relative squared error of normal weights lies near .119, .034 and .009; one group stays well below these.
WORST_GROUP = {2: 0.45, 3: 0.25, 4: 0.15}

problem = st.fixed_dictionaries(
    {
        "bits": st.sampled_from(turboquant.BITS),
        "group_size": st.sampled_from(turboquant.GROUP_SIZES),
        "rows": st.integers(0, 40),
        "columns": st.integers(1, 600),
        "seed": st.integers(0, turboquant.MAX_SEED),
        "scale": st.sampled_from(["norm", "search"]),
        "dtype": st.sampled_from(["BF16", "F16", "F32"]),
    }
)
thorough = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def _weight(case, stored_as):
    random = np.random.default_rng(case["seed"])
    return stored_as(random.standard_normal((case["rows"], case["columns"])) * 0.05, case["dtype"])


@thorough
@given(case=problem, threads=st.integers(1, 5))
def test_round_trip(case, threads, native, stored_as):
    tables = turboquant.tables(case["bits"], case["group_size"], case["seed"])
    weight = _weight(case, stored_as)
    codes, norms = tq_kernels.encode(weight, case["dtype"], tables, scale=case["scale"], threads=threads)
    groups = turboquant.groups(case["columns"], case["group_size"])
    assert codes.shape == (case["rows"] * groups, turboquant.bytes_per_group(case["bits"], case["group_size"]))
    assert codes.dtype == np.uint8
    assert norms.shape == (case["rows"], groups)
    assert norms.dtype == np.float32
    decoded = tq_kernels.decode(codes, norms, case["columns"], tables, dtype=case["dtype"], threads=threads)
    assert decoded.shape == weight.shape
    assert decoded.dtype == weight.dtype


@thorough
@given(case=problem, threads=st.integers(2, 5), cut=st.integers(0, 40))
def test_threads_and_neighbours_change_nothing(case, threads, cut, native, stored_as):
    tables = turboquant.tables(case["bits"], case["group_size"], case["seed"])
    weight = _weight(case, stored_as)
    whole = tq_kernels.encode(weight, case["dtype"], tables, scale=case["scale"])
    shared = tq_kernels.encode(weight, case["dtype"], tables, scale=case["scale"], threads=threads)
    parts = [
        tq_kernels.encode(part, case["dtype"], tables, scale=case["scale"]) for part in (weight[:cut], weight[cut:])
    ]
    for index in (0, 1):
        assert np.array_equal(whole[index], shared[index])
        assert np.array_equal(whole[index], np.concatenate([part[index] for part in parts]))
    decoded = tq_kernels.decode(*whole, case["columns"], tables)
    assert np.array_equal(decoded, tq_kernels.decode(*whole, case["columns"], tables, threads=threads))


@thorough
@given(case=problem)
def test_error_of_every_group(case, native, stored_as):
    tables = turboquant.tables(case["bits"], case["group_size"], case["seed"])
    weight = _weight({**case, "dtype": "F32"}, stored_as)
    codes, norms = tq_kernels.encode(weight, "F32", tables, scale=case["scale"])
    decoded = tq_kernels.decode(codes, norms, case["columns"], tables)
    whole = case["columns"] // case["group_size"] * case["group_size"]
    squares = (weight[:, :whole].astype(np.float64) ** 2).reshape(-1, case["group_size"]).sum(1)
    errors = ((decoded - weight)[:, :whole].astype(np.float64) ** 2).reshape(-1, case["group_size"]).sum(1)
    assert np.all(errors <= WORST_GROUP[case["bits"]] * squares)


def test_the_norm_is_kept(backend, stored_as):
    tables = turboquant.tables(3, 128, 42)
    weight = stored_as(np.random.default_rng(3).standard_normal((16, 256)), "F32")
    decoded = tq_kernels.decode(*tq_kernels.encode(weight, "F32", tables, scale="norm"), 256, tables)
    lengths = [np.linalg.norm(values.reshape(-1, 128), axis=1) for values in (weight, decoded)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)


@pytest.mark.parametrize("bits", turboquant.BITS)
def test_a_zero_group_is_zero(bits, backend, stored_as):
    tables = turboquant.tables(bits, 128, 42)
    for scale in ("norm", "search"):
        codes, norms = tq_kernels.encode(stored_as(np.zeros((3, 128)), "BF16"), "BF16", tables, scale=scale)
        below_zero = (1 << (bits - 1)) - 1
        stream = sum(below_zero << (bits * i) for i in range(8)).to_bytes(bits, "little")
        assert codes[0].tobytes() == stream * 16
        assert not norms.any()
        assert not tq_kernels.decode(codes, norms, 128, tables).any()
