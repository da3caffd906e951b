"""Every row of a layer's weight comes once, from any slices in any order, and what is missing is named."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tqcli.errors import InputError
from tqcli.formats.native import PAIRS
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.runtime.headers import pairs, read_headers
from tqcli.runtime.packed import decode_packed, encode_packed
from tqcli.runtime.vllm.home import Home
from tqcli.runtime.vllm.part import Part
from tqcli.runtime.vllm.rows import Rows, rows_of
from tqcli.runtime.vllm.sources import Files, PairOnDisk, PlainOnDisk
from tqcli.runtime.vllm.spec import Packed

CPU = torch.device("cpu")
COLUMNS = 96
USUAL = Tq(bits=3, group_size=32)


def source(folder: Path, shape: tuple[int, ...], stored_as=USUAL) -> tuple[Rows, torch.Tensor]:
    """A packed weight on disk as rows, and what it decodes to."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    codes, scales = encode_packed(stored_as, weight.view(-1, shape[-1]))
    endings = PAIRS[stored_as.format]
    path = folder / f"{'x'.join(map(str, shape))}-{stored_as.label.replace(' ', '-')}.safetensors"
    save_file({f"w{endings[0]}": codes, f"w{endings[1]}": scales}, path)
    (pair,) = pairs(read_headers([path]))
    on_disk = PairOnDisk(pair, stored_as, shape[-1], Files({path.name: path}))
    decoded = decode_packed(stored_as, codes, scales, shape[-1], torch.float32).view(shape)
    return rows_of(on_disk, shape, torch.float32, CPU), decoded


def joined_home(sizes: tuple[int, ...] = (6, 4, 4)) -> tuple[Home, torch.nn.Parameter]:
    home = Home(
        "qkv_proj", [Part(label, size, CPU) for label, size in zip("qkv", sizes, strict=True)], COLUMNS, torch.float32
    )
    return home, home.parameter(torch.arange(sum(sizes)), CPU)


def experts_home(count: int = 3, inner: int = 5) -> tuple[Home, torch.nn.Parameter]:
    home = Home("experts", [Part(label, count * inner, CPU, count) for label in ("gate", "up")], COLUMNS, torch.float32)
    rows = torch.arange(count * inner).view(count, inner)
    return home, home.parameter(torch.cat((rows, rows + rows.numel()), 1), CPU)


def decoded(part: Packed | torch.Tensor) -> torch.Tensor:
    assert isinstance(part, Packed)
    spec = part.spec
    whole = decode_packed(spec.stored_as, part.codes, part.scales, spec.columns, torch.float32)
    return whole[:, spec.lead : spec.lead + spec.width]


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(6)))
def test_experts_one_by_one_in_any_order(order, tmp_path_factory):
    home, parameter = experts_home()
    found = {}
    for place in order:
        expert, half = divmod(place, 2)
        rows, found[place] = source(tmp_path_factory.mktemp("e"), (5, COLUMNS))
        parameter.data[expert].narrow(0, half * 5, 5).copy_(rows)
    gate, up = (decoded(part) for part in home.finished())
    assert torch.equal(gate, torch.cat([found[place] for place in (0, 2, 4)]))
    assert torch.equal(up, torch.cat([found[place] for place in (1, 3, 5)]))


def test_experts_in_one_tensor(tmp_path):
    home, parameter = experts_home()
    rows, truth = source(tmp_path, (3, 10, COLUMNS))
    for half, piece in enumerate(rows.chunk(2, dim=1)):
        for expert, one in enumerate(piece.unbind()):
            parameter.data[expert].narrow(0, half * 5, 5).copy_(one)
    for part, wanted in zip(home.finished(), truth.chunk(2, dim=1), strict=True):
        assert torch.equal(decoded(part), wanted.reshape(-1, COLUMNS))


def test_parts_keep_formats_of_their_own_or_stay_plain(tmp_path):
    home, parameter = joined_home()
    (q, q_truth), (k, k_truth) = source(tmp_path, (6, COLUMNS)), source(tmp_path, (4, COLUMNS), Trellis(bits=3))
    v = torch.randn(4, COLUMNS)
    for first, one in ((0, q), (6, k), (10, v)):
        parameter.data.narrow(0, first, len(one)).copy_(one)
    found = home.finished()
    assert torch.equal(decoded(found[0]), q_truth)
    assert torch.equal(decoded(found[1]), k_truth)
    assert torch.equal(found[2], v)


def test_parts_that_are_in_one_tensor_on_disk(tmp_path):
    home, parameter = joined_home()
    rows, truth = source(tmp_path, (14, COLUMNS))
    parameter.data.copy_(rows)
    for part, wanted in zip(home.finished(), truth.split((6, 4, 4)), strict=True):
        assert torch.equal(decoded(part), wanted)


def test_columns_of_a_rank(tmp_path):
    rows, truth = source(tmp_path, (7, 2 * COLUMNS), Tq(bits=3))
    for rank in range(2):
        home = Home("o_proj", [Part("weight", 7, CPU)], COLUMNS, torch.float32)
        home.parameter(torch.arange(7), CPU).data.copy_(rows.narrow(1, rank * COLUMNS, COLUMNS))
        assert torch.equal(decoded(home.finished()[0]), truth[:, rank * COLUMNS :][:, :COLUMNS])


def test_rows_of_nothing_are_zeros(tmp_path):
    rows, truth = source(tmp_path, (6, COLUMNS))
    home = Home("embed_tokens", [Part("weight", 9, CPU)], COLUMNS, torch.float32)
    parameter = home.parameter(torch.arange(9), CPU)
    parameter[:6].data.copy_(rows)
    parameter[6:].data.fill_(0)
    assert torch.equal(decoded(home.finished()[0]), torch.cat((truth, torch.zeros(3, COLUMNS))))


def test_what_is_missing_is_named(tmp_path):
    home, parameter = experts_home()
    for expert, half in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1)):
        parameter.data[expert].narrow(0, half * 5, 5).copy_(source(tmp_path, (5, COLUMNS))[0])
    with pytest.raises(InputError, match="`experts` is not whole: `up` of expert 1 did not come") as caught:
        home.finished()
    assert caught.value.why == "5 of 15 rows are in no file of the checkpoint"
    with pytest.raises(InputError, match="`qkv_proj` is not whole: `q` did not come"):
        joined_home()[0].finished()


def test_what_comes_twice_is_refused(tmp_path):
    _, parameter = joined_home()
    rows, _ = source(tmp_path, (6, COLUMNS))
    parameter.data.narrow(0, 0, 6).copy_(rows)
    with pytest.raises(InputError, match="`q` comes twice"):
        parameter.data.narrow(0, 2, 2).copy_(rows[:2])


@pytest.mark.parametrize("second", [Tq(bits=4, group_size=32), Trellis(bits=3), None])
def test_one_part_has_one_format(second, tmp_path):
    _, parameter = joined_home()
    parameter.data.narrow(0, 0, 3).copy_(source(tmp_path, (3, COLUMNS))[0])
    other = torch.zeros(2, COLUMNS) if second is None else source(tmp_path, (2, COLUMNS), second)[0]
    with pytest.raises(InputError, match="`q` is packed in two ways"):
        parameter.data.narrow(0, 3, 2).copy_(other)


@pytest.mark.parametrize("shape", [(5, COLUMNS), (6, 32)])
def test_another_shape_is_refused(shape, tmp_path):
    _, parameter = joined_home()
    with pytest.raises(InputError, match="does not fit the weight of `qkv_proj`"):
        parameter.data.narrow(0, 0, 6).copy_(source(tmp_path, shape)[0])


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_rows_packed_as_they_are_read_are_those_of_the_whole(data, tmp_path_factory):
    """Pieces that begin and end within items of a tensor of three dimensions."""
    folder = tmp_path_factory.mktemp("plain")
    weight = torch.randn(4, 6, COLUMNS, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    save_file({"w": weight}, folder / "model.safetensors")
    stored_as = Trellis(bits=2)
    files = Files({"model.safetensors": folder / "model.safetensors"})
    lazy = PlainOnDisk("w", "model.safetensors", (4, 6, COLUMNS), stored_as, files)
    begin = data.draw(st.integers(0, 23))
    end = data.draw(st.integers(begin + 1, 24))
    whole = encode_packed(stored_as, weight.view(-1, COLUMNS))
    for found, wanted in zip(lazy.take(begin, end), whole, strict=True):
        assert torch.equal(found, wanted[begin:end])


def test_a_weight_that_is_not_finite_is_named_with_its_row(tmp_path):
    weight = torch.ones(2, 6, COLUMNS)
    weight[1, 3, 5] = float("nan")
    save_file({"w": weight}, tmp_path / "model.safetensors")
    files = Files({"model.safetensors": tmp_path / "model.safetensors"})
    lazy = PlainOnDisk("w", "model.safetensors", (2, 6, COLUMNS), Tq(bits=3), files)
    with pytest.raises(InputError, match="`w` cannot be packed") as caught:
        lazy.take(4, 11)
    assert caught.value.why == "row 9 is not finite, or too large"
