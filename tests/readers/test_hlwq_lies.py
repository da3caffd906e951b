"""HLWQ folders that contradict themselves, or are not whole: refused with the reason, whatever stands in them."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkpoints
from support.hlwq_folders import Q, contents, dotted, folder_of, triple

from tqcli.checkpoint.storage import LocalFolder
from tqcli.codec.hlwq_tables import levels
from tqcli.errors import InputError
from tqcli.packed import decode_rows

T5 = levels("truncated", 5)


def without(tensors, part):
    return {name: one for name, one in tensors.items() if not name.endswith(part)}


def changed(part, new, tensors=None):
    return {name: new if name.endswith(part) else one for name, one in (tensors or triple()[0]).items()}


def meta(*numbers):
    return changed("__meta", ("I64", (len(numbers),), struct.pack(f"<{len(numbers)}q", *numbers)))


NO_ROWS = changed("__packed", ("U8", (0,), b""), changed("__norms", ("F16", (0, 2), b""), meta(0, 2, 128, 0, 200)))
LYING = {
    "no norms": (without(triple()[0], "__norms"), "is not a whole weight"),
    "no meta": (without(triple()[0], "__meta"), "is not a whole weight"),
    "no packed": (without(triple()[0], "__packed"), "is not a whole weight"),
    "no table": (without(dotted(T5), ".ct"), "is not a whole weight"),
    "no norms beside codes": (without(dotted(T5), ".norms"), "is not a whole weight"),
    "two tables": (dotted(T5) | dotted(T5, part="ct_scaled"), "is not a whole weight"),
    "other blocks": (meta(4, 2, 64, 1024, 200), "blocks of 64"),
    "other rows": (meta(5, 2, 128, 1024, 200), "does not go with norms"),
    "negative": (meta(-4, -2, 128, 1024, 200), "does not go with norms"),
    "too wide": (meta(4, 2, 128, 1024, 2**62), "does not go with norms"),
    "no columns": (meta(4, 2, 128, 1024, 0), "does not go with norms"),
    "three numbers": (meta(4, 2, 128), "4 or 5 numbers"),
    "a large meta": (changed("__meta", ("I64", (1000,), bytes(8000))), "is too large"),
    "a float meta": (changed("__meta", ("F32", (10,), bytes(40))), "its sizes are F32"),
    "short codes": (changed("__packed", ("U8", (635,), bytes(635))), "fit no width"),
    "7 bits": (changed("__packed", ("U8", (896,), bytes(896))), "fit no width"),
    "float codes": (changed("__packed", ("F32", (160,), bytes(640))), "codes are F32"),
    "wide norms": (changed("__norms", ("F32", (4, 2), bytes(32))), "norms F32"),
    "no rows": (NO_ROWS, "codes are U8, norms F16"),
    "levels that are none": (dotted(np.full(32, np.nan, np.float32)), "do not ascend"),
    "levels that fall": (dotted(T5[::-1].copy()), "do not ascend"),
    "33 levels": (dotted(np.arange(33, dtype=np.float32)), "its levels are"),
    "many levels": (dotted(np.arange(4096, dtype=np.float32)), "is too large"),
    "codes of no packing": (dotted(T5, np.zeros((4, 100), np.int8)), "are no 512 indices of 5 bits"),
    "twice": (triple()[0] | triple(Q.replace(".", "__") + "__weight")[0], "is there twice"),
    "plain too": (triple()[0] | {f"{Q}.weight": checkpoints.tensor((4, 200))}, "is there twice"),
}


@pytest.mark.parametrize("case", LYING)
def test_tensors_that_do_not_go_together(tmp_path, case):
    tensors, message = LYING[case]
    with pytest.raises(InputError, match=message):
        contents(folder_of(tmp_path / "out", tensors))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"polar_config": {"layers": {Q: {"bits": 4}}}}, "4 bits"),
        ({"polar_config": {"block_size": 64}}, "blocks of 64"),
        ({"polar_config": {"layers": {Q: {"in_features": "many"}}}}, "its columns are"),
        ({"polar_config": {"layers": {Q: {"in_features": 300}}}}, "300 columns are not 1 blocks"),
        ({"polar_config": {"layers": [1, 2]}, "hlwq_config": {"bits": "five", "block_size": 128}}, ""),
        (
            {"tq_config": {"layout": "hlwq", "tensors": {f"{Q}.weight": {"shape": [4, 127], "bits": 5}}}},
            "tq_config.json",
        ),
        (
            {"tq_config": {"layout": "hlwq", "tensors": {f"{Q}.weight": {"shape": [4, 128], "bits": 4}}}},
            "tq_config.json",
        ),
    ],
)
def test_files_beside_must_agree(tmp_path, files, message):
    folder = folder_of(tmp_path / "out", dotted(T5), **files)
    if not message:
        assert len(contents(folder).packed) == 1
        return
    with pytest.raises(InputError, match=message):
        contents(folder)


@pytest.mark.parametrize("table", ["mine", 5, ["truncated"]])
def test_an_unknown_table(tmp_path, table):
    with pytest.raises(InputError, match="unknown table"):
        contents(folder_of(tmp_path / "out", triple()[0], hlwq_config={"table": table}))


def test_an_index_without_a_level(tmp_path):
    folder = folder_of(tmp_path / "out", dotted(T5, np.full((4, 128), 40, np.int8)))
    with pytest.raises(InputError, match="is damaged") as raised:
        decode_rows(LocalFolder(folder), contents(folder).packed[f"{Q}.weight"], 0, 4)
    assert raised.value.why == "index 40 has no level: the table has 32"


@pytest.mark.parametrize(
    "files",
    [{"hlwq_config": {}}, {"polar_config": {}}, {"config": {"quantization_config": {"quant_method": "polarengine"}}}],
)
def test_a_folder_that_only_says_so(tmp_path, files):
    with pytest.raises(InputError, match="holds no HLWQ weight"):
        contents(folder_of(tmp_path / "out", {"a.weight": checkpoints.tensor((4, 4))}, **files))


KEYS = [f"{Q}.weight", Q, "a__b", "x_e0", "x_e1.weight", "__", ".weight", "_e0"]
PARTS = ["__packed", "__codes", "__norms", "__meta", ".codes", ".norms", ".ct", ".ct_scaled", ""]
DTYPES = {"U8": 1, "I8": 1, "F16": 2, "F32": 4, "I64": 8}
SIZES = [0, 1, 2, 4, 5, 32, 80, 128]


@st.composite
def folders(draw):
    """Any tensors of such names, among them whole weights of the right sizes."""
    tensors = {}
    for key, part in draw(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(PARTS)), max_size=8, unique=True)):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = tuple(draw(st.lists(st.sampled_from(SIZES), max_size=3)))
        size = int(np.prod(shape)) * DTYPES[dtype]
        data = draw(st.sampled_from([b"\x00", b"\x01", b"\xff", struct.pack("<4q", 1, 1, 128, 128)]))
        tensors[key + part] = (dtype, shape, (data * size)[:size])
    kinds = [("__packed", "U8", (80,)), ("__norms", "F16", (1, 1)), ("__meta", "I64", (5,))]
    if draw(st.booleans()):
        numbers = draw(st.lists(st.sampled_from([-1, 0, 1, 100, 128, 2**62]), min_size=5, max_size=5))
        content = {"__packed": bytes(80), "__norms": b"\x00\x3c", "__meta": struct.pack("<5q", *numbers)}
        tensors |= {f"{Q}.weight{part}": (dtype, shape, content[part]) for part, dtype, shape in kinds}
    return tensors


@settings(max_examples=200, deadline=None)
@given(folders())
def test_anything_is_read_or_refused(tmp_path_factory, tensors):
    folder = folder_of(tmp_path_factory.mktemp("any") / "out", tensors)
    try:
        for packed in contents(folder).packed.values():
            assert decode_rows(LocalFolder(folder), packed, 0, packed.rows).shape == (packed.rows, packed.columns)
    except InputError as error:
        assert error.what
