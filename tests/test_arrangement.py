"""No row of the source is lost or taken twice on the way to another layout."""

from dataclasses import replace

import pytest

from tqcli.architectures.base import find
from tqcli.arrangement import Arrangement, LeftOut
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.layouts.base import find as find_layout
from tqcli.layouts.originals import original_weights

LAYOUTS = ("compressed_tensors", "mlx", "native", "plain")


@pytest.fixture(params=["gemma_folder", "qwen_folder"])
def opened(request):
    with LocalFolder(request.getfixturevalue(request.param)) as storage:
        source = open_checkpoint(storage)
        yield source, original_weights(source, find(source.config))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_places_every_row_once(opened, layout):
    source, originals = opened
    find_layout(layout).arrange(originals, source).check(originals)


def test_a_weight_without_a_place_is_found(opened):
    _, originals = opened
    lost = originals[3]
    with pytest.raises(RuntimeError, match=f"no place for {lost.name}"):
        Arrangement("mine", tuple(one for one in originals if one is not lost)).check(originals)
    rest = tuple(one for one in originals if one is not lost)
    Arrangement("mine", rest, (LeftOut(lost, "not needed"),)).check(originals)


def test_rows_that_are_lost_or_taken_twice_are_found(opened):
    _, originals = opened
    large = next(one for one in originals if one.rows > 1)
    others = tuple(one for one in originals if one is not large)
    half = replace(large, runs=large.cut(0, large.rows // 2))
    for wrong in ((half,), (large, large), (large, half)):
        with pytest.raises(RuntimeError, match="does not place every row once"):
            Arrangement("mine", (*others, *wrong)).check(originals)


def test_a_weight_from_nowhere_is_found(opened):
    _, originals = opened
    with pytest.raises(RuntimeError, match="does not place every row once"):
        Arrangement("mine", originals).check(originals[1:])
