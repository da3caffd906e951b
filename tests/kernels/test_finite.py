"""The check of weights that are kept as they are."""

import numpy as np
import pytest
import tq_kernels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(0, 10000),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
    special=st.sampled_from([np.nan, np.inf, -np.inf]),
    places=st.lists(st.integers(0, 9999), max_size=3),
)
def test_the_first_is_found(size, dtype, special, places, backend, stored_as):
    values = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    places = sorted(place for place in places if place < size)
    array = stored_as(values, dtype)
    array[places] = stored_as(np.array([special]), "BF16")[0] if dtype == "BF16" else special
    assert tq_kernels.first_non_finite(array, dtype) == (places[0] if places else None)


def test_the_largest_numbers_are_finite(backend):
    largest = {"BF16": np.array([0x7F7F, 0xFF7F], np.uint16), "F16": np.array([65504, -65504], np.float16)}
    largest["F32"] = np.array([np.finfo(np.float32).max, np.finfo(np.float32).min], np.float32)
    for dtype, array in largest.items():
        assert tq_kernels.first_non_finite(array.reshape(2, 1), dtype) is None


def test_refused(backend):
    with pytest.raises(ValueError, match="must come as"):
        tq_kernels.first_non_finite(np.ones(3, np.int32), "F32")
    with pytest.raises(ValueError, match="C-contiguous"):
        tq_kernels.first_non_finite(np.ones(6, np.float32)[::2], "F32")
