import json
import math

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tqcli.checkpoint.header import DTYPE_BITS, MAX_HEADER_BYTES, Header, header_bytes, parse_header
from tqcli.errors import InputError


def build(entries, data=b"", *, text=None):
    text = json.dumps(entries).encode() if text is None else text
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="U8", shape=(4,), offsets=(0, 4), **extra):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **extra}


def parse(raw):
    return parse_header(raw, "w.safetensors", len(raw))


def library_accepts(raw):
    try:
        safetensors.deserialize(raw)
    except safetensors.SafetensorError:
        return False
    return True


def test_a_file_of_the_library_is_read_as_written():
    raw = save(
        {"x": np.zeros((2, 3), np.float16), "y": np.ones((5,), np.int64), "z": np.zeros((0, 7), np.int8)}, {"k": "v"}
    )
    header = parse(raw)
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in header.tensors} == {
        "x": ("F16", (2, 3)),
        "y": ("I64", (5,)),
        "z": ("I8", (0, 7)),
    }
    assert header.metadata == {"k": "v"}
    ones = next(tensor for tensor in header.tensors if tensor.name == "y")
    assert np.frombuffer(raw, np.int64, 5, ones.offset).tolist() == [1] * 5
    assert (ones.nbytes, ones.parameters, ones.file) == (40, 5, "w.safetensors")


def test_the_hash_is_over_the_header_alone():
    first = parse(build({"x": entry()}, b"1234"))
    assert first.sha256 == parse(build({"x": entry()}, b"5678")).sha256
    assert first.sha256 != parse(build({"y": entry()}, b"1234")).sha256


def test_more_than_the_header_may_be_given():
    raw = build({"x": entry()}, b"1234")
    assert parse_header(raw, "w", len(raw)) == parse_header(raw[:-4], "w", len(raw))


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_takes_its_width(dtype):
    nbytes = 8 * DTYPE_BITS[dtype] // 8
    raw = build({"x": entry(dtype, (2, 4), (0, nbytes))}, bytes(nbytes))
    assert parse(raw).tensors[0].nbytes == nbytes
    assert library_accepts(raw)
    with pytest.raises(InputError, match="x"):
        parse(build({"x": entry(dtype, (2, 4), (0, nbytes + 1))}, bytes(nbytes + 1)))


def test_order_of_the_names_does_not_matter_that_of_the_bytes_does():
    raw = build({"b": entry(offsets=(4, 8)), "a": entry(), "empty": entry(shape=(0,), offsets=(4, 4))}, bytes(8))
    assert [tensor.name for tensor in parse(raw).tensors] == ["a", "empty", "b"]
    assert library_accepts(raw)


BAD = {
    "empty file": (b"", "truncated"),
    "seven bytes": (b"\x01" * 7, "truncated"),
    "length past the end": ((100).to_bytes(8, "little") + b"{}", "truncated"),
    "length past the limit": ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "not a safetensors file"),
    "all ones": (b"\xff" * 64, "not a safetensors file"),
    "no header": (bytes(8), "not a safetensors file"),
    "leading space": (build(None, text=b" {}"), "begin with a brace"),
    "array": (build([]), "begin with a brace"),
    "half a header": (build(None, text=b'{"x":'), "not valid JSON"),
    "not text": (build(None, text=b'{"\xff":1}'), "not UTF-8"),
    "half a surrogate": (
        build(None, text=b'{"\\ud800":%b}' % json.dumps(entry()).encode(), data=bytes(4)),
        "valid text",
    ),
    "half a surrogate as dtype": (
        build(None, text=b'{"x":{"dtype":"\\ud800","shape":[],"data_offsets":[0,0]}}'),
        "dtype",
    ),
    "deep": (build(None, text=b'{"x":' + b"[" * 100_000), "nested"),
    "same tensor twice": (
        build(None, text=b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2), data=bytes(4)),
        "twice",
    ),
    "same key twice": (
        build(None, text=b'{"x":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "twice",
    ),
    "metadata of numbers": (build({"__metadata__": {"a": 1}}), "strings to strings"),
    "metadata is a list": (build({"__metadata__": []}), "strings to strings"),
    "tensor is a number": (build({"x": 1}), "must hold"),
    "no dtype": (build({"x": {"shape": [4], "data_offsets": [0, 4]}}, bytes(4)), "must hold"),
    "another key": (build({"x": entry(extra=1)}, bytes(4)), "must hold"),
    "unknown dtype": (build({"x": entry("Q3")}, bytes(4)), "unknown dtype"),
    "dtype is a list": (build({"x": entry(["U8"])}, bytes(4)), "unknown dtype"),
    "shape is a number": (build({"x": {**entry(), "shape": 4}}, bytes(4)), "shape"),
    "negative size": (build({"x": entry(shape=(-4,))}, bytes(4)), "not valid JSON"),
    "fraction": (build({"x": entry(shape=(4.0,))}, bytes(4)), "shape"),
    "true": (build({"x": entry("U8", (True,), (0, 1))}, bytes(1)), "shape"),
    "too many dimensions": (build({"x": entry(shape=(1,) * 65, offsets=(0, 1))}, bytes(1)), "shape"),
    "huge number": (build(None, text=b'{"x":{"dtype":"U8","shape":[' + b"9" * 50_000 + b"]}}"), "not a size"),
    "huge product": (build({"x": entry("U64", (1 << 40,) * 60, (0, 8))}, bytes(8)), "does not take"),
    "product that wraps to the right size": (
        build({"x": entry(shape=(1 << 32, 1 << 32), offsets=(0, 0))}),
        "does not take",
    ),
    "product that a zero would excuse": (
        build({"x": entry(shape=(1 << 62, 1 << 62, 0), offsets=(0, 0))}),
        "does not take",
    ),
    "half a byte": (build({"x": entry("F4", (3,), (0, 2))}, bytes(2)), "does not take"),
    "one offset": (build({"x": {**entry(), "data_offsets": [4]}}, bytes(4)), "begin and an end"),
    "backwards": (build({"x": entry(offsets=(4, 0))}, bytes(4)), "begin and an end"),
    "too small": (build({"x": entry(offsets=(0, 3))}, bytes(3)), "does not take"),
    "hole at the start": (build({"x": entry(offsets=(1, 5))}, bytes(5)), "hole"),
    "hole between": (build({"x": entry(), "y": entry(offsets=(5, 9))}, bytes(9)), "hole"),
    "overlap": (build({"x": entry(), "y": entry(offsets=(2, 6))}, bytes(6)), "overlaps"),
    "same bytes": (build({"x": entry(), "y": entry()}, bytes(4)), "overlaps"),
    "data cut off": (build({"x": entry()}, bytes(3)), "truncated"),
    "data left over": (build({"x": entry()}, bytes(5)), "belong to no tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_the_file_and_the_fault(case):
    raw, message = BAD[case]
    with pytest.raises(InputError) as caught:
        parse(raw)
    assert message in str(caught.value)
    assert "w.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_header_that_was_not_read_whole():
    raw = build({"x": entry()}, bytes(4))
    with pytest.raises(InputError, match="truncated"):
        parse_header(raw[:20], "w", len(raw))


def test_the_length_is_checked_before_the_header_is_read():
    assert header_bytes((10).to_bytes(8, "little"), "w", 18) == 18
    with pytest.raises(InputError, match="truncated"):
        header_bytes((11).to_bytes(8, "little"), "w", 18)


def mutated(draw_bytes, position, replacement):
    position %= len(draw_bytes) + 1
    return draw_bytes[:position] + replacement + draw_bytes[position + len(replacement) :]


VALID = save({"a": np.zeros((3, 2), np.float32), "b.weight": np.zeros((4,), np.uint8)}, {"format": "pt"})

SIZES = st.one_of(st.integers(0, 6), st.integers(-2, 1 << 70), st.booleans(), st.floats(allow_nan=False))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "X"]),
        "shape": st.lists(st.one_of(st.integers(0, 6), SIZES), max_size=3),
        "data_offsets": st.lists(st.one_of(st.integers(0, 12), SIZES), min_size=1, max_size=3),
    }
)


def check_against_the_library(raw):
    """Never anything but a Header or an InputError, and never a Header for what the library refuses."""
    try:
        header = parse(raw)
    except InputError:
        return
    assert isinstance(header, Header)
    assert library_accepts(raw)
    theirs = {
        name: (info["dtype"], tuple(info["shape"]), len(info["data"])) for name, info in safetensors.deserialize(raw)
    }
    assert {tensor.name: (tensor.dtype, tensor.shape, tensor.nbytes) for tensor in header.tensors} == theirs


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_fuzz_bytes(raw):
    check_against_the_library(raw)


@settings(deadline=None)
@given(st.binary(max_size=120), st.binary(max_size=12))
def test_fuzz_text(text, data):
    check_against_the_library(build(None, data, text=b"{" + text + b"}"))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(VALID)), st.binary(max_size=6))
def test_fuzz_damage(position, replacement):
    check_against_the_library(mutated(VALID, position, replacement))


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), ENTRIES, max_size=3), st.integers(0, 24))
def test_fuzz_entries(entries, length):
    check_against_the_library(build(entries, bytes(length)))


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPE_BITS)), st.lists(st.integers(0, 5), max_size=4)),
        max_size=6,
    ),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.integers(0, 9),
)
def test_everything_honest_is_accepted(tensors, metadata, padding):
    entries, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        # Sub-byte types need a whole number of bytes.
        shape = [*shape, 4] if DTYPE_BITS[dtype] < 8 else shape
        nbytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = entry(dtype, shape, (position, position + nbytes))
        position += nbytes
    if metadata is not None:
        entries["__metadata__"] = metadata
    raw = build(None, bytes(position), text=json.dumps(entries).encode() + b" " * padding)
    assert library_accepts(raw)
    assert {tensor.name for tensor in parse(raw).tensors} == set(tensors)
    assert parse(raw).metadata == (metadata or {})
