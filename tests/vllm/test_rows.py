"""Slices of rows that are not there are those of a tensor that is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tqcli.errors import InputError
from tqcli.runtime.vllm.rows import Rows, rows_of

CPU = torch.device("cpu")


class Numbers:
    """A weight of 24 rows and 8 columns whose elements are all different."""

    name = "numbers"

    def decode(self, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return (numbers[:, None] * 8 + torch.arange(8)).to(dtype)


class Nothing:
    """A weight that is being loaded."""

    def __repr__(self) -> str:
        return "the weight of `layer`"


SHAPE = (4, 6, 8)
WEIGHT = torch.arange(24 * 8, dtype=torch.float32).view(SHAPE)


def rows() -> Rows:
    return rows_of(Numbers(), SHAPE, torch.float32, CPU)


def step(data: st.DataObject, one: torch.Tensor) -> tuple[str, tuple]:
    """One of the operations by which loaders take parts."""
    dim = data.draw(st.integers(0, one.ndim - 1))
    size = one.shape[dim]
    kind = data.draw(st.sampled_from(["narrow", "chunk", "unbind", "select", "unsqueeze", "detach", "transpose"]))
    begin = data.draw(st.integers(0, size - 1))
    arguments = {
        "narrow": (dim, begin, data.draw(st.integers(1, size - begin))),
        "chunk": (data.draw(st.integers(1, 3)), dim),
        "unbind": (dim,),
        "select": (dim, begin),
        "unsqueeze": (dim - one.ndim - 1 if data.draw(st.booleans()) else dim,),
        "detach": (),
        "transpose": (dim, 0),
    }
    return kind, arguments[kind]


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_slices_in_any_order(data):
    real, unreal = WEIGHT, rows()
    for _ in range(data.draw(st.integers(0, 5))):
        if real.ndim == 0:
            break
        kind, arguments = step(data, real)
        real, unreal = (getattr(one, kind)(*arguments) for one in (real, unreal))
        if not isinstance(real, torch.Tensor):
            place = data.draw(st.integers(0, len(real) - 1))
            real, unreal = real[place], unreal[place]
        assert real.shape == unreal.shape
    target = torch.zeros(real.shape)
    target.copy_(unreal)
    assert torch.equal(target, real)


def test_slices_decode_nothing():
    class Forbidden:
        def decode(self, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            raise AssertionError("decoded")

    weight = rows_of(Forbidden(), SHAPE, torch.bfloat16, CPU)
    for half in weight.chunk(2, dim=1):
        for expert in half.unbind():
            part = expert.unsqueeze(0)[0][1:, 2:6].contiguous().data
            assert isinstance(part, Rows)
            assert (part.shape, part.dtype, part.first) == ((2, 4), torch.bfloat16, 2)


def test_a_weight_that_is_loading_is_no_weight():
    parameter = torch.nn.Parameter(rows_of(Nothing(), (3, 8), torch.float32, CPU), requires_grad=False)
    assert isinstance(parameter, torch.nn.Parameter)
    assert parameter.data.to("meta").shape == (3, 8)
    with pytest.raises(InputError, match="the weight of `layer` was used before it was loaded"):
        torch.nn.functional.linear(torch.zeros(1, 8), parameter)
