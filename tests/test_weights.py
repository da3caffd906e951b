"""Runs of rows: cutting, joining and reading weights that lie in several tensors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import checkpoints

from tqcli.architectures.base import TensorRole
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.weights import Run, joined, read_elements, read_rows, whole

ROLE = TensorRole(("q",), 0, "block", None)


def stack(sizes):
    """A weight of several tensors, each an array of its own row numbers instead of a real source."""
    sources = [np.arange(size) + 1000 * number for number, size in enumerate(sizes)]
    first = whole(sources[0], "w", ROLE, "BF16", (sizes[0], 4))
    return joined(first, "w", (sum(sizes), 4), [Run(one, 0, len(one)) for one in sources])


def rows_of(runs):
    return [int(run.source[run.first + i]) for run in runs for i in range(run.rows)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_a_cut_has_the_rows_asked_for(sizes, data):
    weight = stack(sizes)
    everything = rows_of(weight.runs)
    first = data.draw(st.integers(0, len(everything)))
    count = data.draw(st.integers(0, len(everything) - first))
    assert rows_of(weight.cut(first, count)) == everything[first : first + count]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.data())
def test_a_cut_of_a_part_is_a_cut_of_the_whole(sizes, data):
    weight = stack(sizes)
    first = data.draw(st.integers(0, sum(sizes) - 1))
    part = weight.part("p", first, (sum(sizes) - first, 4), ROLE)
    assert rows_of(part.cut(0, 2)) == rows_of(weight.cut(first, 2))
    assert part.rows == sum(sizes) - first


def test_rows_that_do_not_add_up_are_refused():
    weight = stack([2, 3])
    with pytest.raises(ValueError, match="5 rows for shape"):
        joined(weight, "w", (6, 4), weight.runs)


def test_sizes_of_scalars_and_stacks(gemma_folder):
    with LocalFolder(gemma_folder) as storage:
        tensors = open_checkpoint(storage).tensors
        for tensor in tensors.values():
            weight = whole(tensor, tensor.name, ROLE, tensor.dtype, tensor.shape)
            assert (weight.nbytes, weight.parameters) == (tensor.nbytes, tensor.parameters)
            assert weight.rows * weight.columns == tensor.parameters


def test_what_is_read_is_what_lies_there(here):
    values = {
        name: np.random.default_rng(seed).standard_normal((3, 8)).astype(np.float32) for seed, name in enumerate("ab")
    }
    checkpoints.write_checkpoint(
        here / "model", {"model_type": "llama"}, {n: ("F32", (3, 8), v.tobytes()) for n, v in values.items()}
    )
    with LocalFolder(here / "model") as storage:
        tensors = open_checkpoint(storage).tensors
        first = whole(tensors["a"], "a", ROLE, "F32", (3, 8))
        both = joined(first, "ba", (6, 8), [Run(tensors["b"], 0, 3), Run(tensors["a"], 0, 3)])
        expected = np.concatenate([values["b"], values["a"]])
        assert np.array_equal(read_rows(storage, both, 0, 6), expected)
        assert np.array_equal(read_rows(storage, both, 2, 3), expected[2:5])
        assert read_elements(storage, both, 6, 0).size == 0


def test_what_is_no_float_has_no_rows(here):
    checkpoints.write_checkpoint(here / "model", {}, {"a": ("I64", (2,), bytes(16))})
    with LocalFolder(here / "model") as storage:
        tensor = open_checkpoint(storage).tensors["a"]
        with pytest.raises(ValueError, match="a is I64"):
            read_rows(storage, whole(tensor, "a", ROLE, "I64", (2,)), 0, 1)
