"""A weight cut by columns decodes to the columns that it was cut to, and multiplies like them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform
from tqcli.runtime.packed import decode_packed, encode_packed
from tqcli.runtime.vllm import compute
from tqcli.runtime.vllm.cut import cut, span
from tqcli.runtime.vllm.spec import Packed, Spec, read_spec

FORMATS = [
    Tq(bits=2, group_size=32), Tq(bits=3), Tq(bits=4, group_size=64, seed=7), Tq(bits=3, group_size=256),
    Trellis(bits=2), Trellis(bits=3, rotation="none"), Trellis(bits=4, seed=3), Uniform(bits=8),
    Uniform(bits=4, group_size=32), Uniform(bits=4, group_size=256),
]  # fmt: skip
COLUMNS = (16, 48, 96, 128, 336, 704)


def packed(stored_as, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales, and what they decode to."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    codes, scales = encode_packed(stored_as, weight)
    return codes, scales, decode_packed(stored_as, codes, scales, columns, torch.float32)


@settings(deadline=None, max_examples=150)
@given(stored_as=st.sampled_from(FORMATS), columns=st.sampled_from(COLUMNS), data=st.data())
def test_a_span_is_a_weight_by_itself(stored_as, columns, data):
    codes, scales, decoded = packed(stored_as, 5, columns)
    first = data.draw(st.integers(0, columns - 1))
    count = data.draw(st.integers(1, columns - first))
    wanted = span(stored_as, columns, first, count)
    assert wanted.begin <= first < first + count <= wanted.end
    kept = cut(stored_as, codes, scales, columns, wanted)
    part = decode_packed(stored_as, *(one.contiguous() for one in kept), wanted.columns, torch.float32)
    assert torch.equal(part, decoded[:, wanted.begin : wanted.end])
    weight = Packed(
        kept[0].contiguous(), kept[1].contiguous(), Spec(stored_as, wanted.columns, first - wanted.begin, count)
    )
    hidden = torch.randn(3, count, generator=torch.Generator().manual_seed(1))
    found = compute.linear(hidden, weight, "float")
    assert torch.allclose(found, hidden @ decoded[:, first : first + count].T, atol=1e-4)


def test_a_span_keeps_no_group_that_has_none_of_the_columns():
    assert [span(Tq(bits=3), 704, *one).columns for one in ((0, 352), (352, 352), (0, 128), (128, 1))] == [
        384, 448, 128, 128,
    ]  # fmt: skip
    assert span(Trellis(bits=3), 704, 640, 64).columns == 64


@pytest.mark.parametrize("wanted", [(-1, 2), (0, 0), (700, 5)])
def test_columns_that_are_not_there_are_refused(wanted):
    with pytest.raises(ValueError, match="there are no columns"):
        span(Tq(bits=3), 704, *wanted)


@pytest.mark.parametrize("stored_as", [*FORMATS, Trellis(bits=2, codebook="0a" * 256)])
def test_what_codes_mean_survives_as_text(stored_as):
    spec = Spec(stored_as, 704, 32, 352)
    assert read_spec(spec.text) == spec
