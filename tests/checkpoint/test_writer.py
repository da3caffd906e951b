"""Layouts that the stock parser agrees with, and files that are whole or not there."""

import errno
import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from support.checkpoints import names_of

from tqcli.checkpoint.header import DTYPE_BITS, parse_header
from tqcli.checkpoint.stored import Stored
from tqcli.checkpoint.writer import ShardLayout, ShardWriter, disk_errors, lay_out_shards, shard_name, write_atomically
from tqcli.errors import InputError, MachineError

DTYPES = ["BOOL", "U8", "I8", "F8_E4M3", "F16", "BF16", "I32", "F32", "F64", "I64"]
names = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def units(draw) -> list[list[Stored]]:
    unique = draw(st.lists(names, unique=True, min_size=1, max_size=8))
    tensors = [Stored(name, draw(st.sampled_from(DTYPES)), draw(shapes)) for name in unique]
    cuts = sorted(draw(st.sets(st.integers(1, len(tensors)), max_size=4)) | {0, len(tensors)})
    return [tensors[a:b] for a, b in pairwise(cuts)]


def file_of(layout: ShardLayout) -> bytes:
    return layout.header + bytes(range(256)) * (layout.weight_bytes // 256) + bytes(layout.weight_bytes % 256)


@given(units(), st.integers(1, 400))
@settings(deadline=None)
def test_layouts_hold_everything_once_and_parse(units, shard_bytes):
    shards = lay_out_shards(units, shard_bytes)
    wanted = [tensor for unit in units for tensor in unit]
    found = [tensor for shard in shards for tensor in shard.tensors]
    assert sorted(wanted, key=lambda one: one.name) == sorted(found, key=lambda one: one.name)
    for number, shard in enumerate(shards, 1):
        assert shard.name == shard_name(number, len(shards))
        _parses(shard)
    _cut_well(units, shards, shard_bytes)


def _parses(shard: ShardLayout) -> None:
    raw = file_of(shard)
    assert len(raw) == shard.file_bytes
    parsed = {name: entry for name, entry in deserialize(raw)}  # noqa: C416
    ours = parse_header(raw, shard.name, len(raw))
    assert set(parsed) == {one.name for one in ours.tensors} == {one.name for one in shard.tensors}
    for tensor in ours.tensors:
        stock = parsed[tensor.name]
        assert (stock["dtype"], tuple(stock["shape"])) == (tensor.dtype, tensor.shape)
        assert bytes(stock["data"]) == raw[tensor.offset : tensor.offset + tensor.nbytes]
        assert tensor.offset == len(shard.header) + shard.offsets[tensor.name]
        assert tensor.offset % max(1, DTYPE_BITS[tensor.dtype] // 8) == 0


def _cut_well(units, shards, shard_bytes) -> None:
    where = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    sizes = [sum(tensor.nbytes for tensor in unit) for unit in units]
    assert all(len({where[tensor.name] for tensor in unit}) <= 1 for unit in units)
    for shard in shards:
        inside = [size for unit, size in zip(units, sizes, strict=True) if unit and where[unit[0].name] == shard.name]
        assert sum(inside) <= shard_bytes or len([size for size in inside if size]) == 1


def test_names_of_shards():
    assert shard_name(1, 1) == "model.safetensors"
    assert shard_name(2, 7) == "model-00002-of-00007.safetensors"


def test_more_shards_than_five_digits_can_count():
    units = [[Stored(str(number), "U8", (1,))] for number in range(100_000)]
    with pytest.raises(InputError, match="100000 shards are too many"):
        lay_out_shards(units, 1)
    assert len(lay_out_shards(units[:-1], 1)) == 99_999


def test_one_shard_of_the_whole_size_is_not_cut():
    units = [[Stored("a", "F32", (4,))], [Stored("b", "F32", (4,))]]
    assert len(lay_out_shards(units, 32)) == 1
    assert len(lay_out_shards(units, 31)) == 2


LAYOUT = ShardLayout("model.safetensors", (Stored("wide", "F32", (3,)), Stored("flat", "U8", (5,))))


def write(folder: Path, pieces: list[tuple[str, bytes]]) -> dict[str, str]:
    with ShardWriter(folder, LAYOUT) as writer:
        for name, piece in pieces:
            writer.append(name, piece)
        return writer.finish()


def test_pieces_of_tensors_come_in_any_order(tmp_path):
    a = write(tmp_path, [("flat", b"ab"), ("wide", b"0123"), ("flat", b"cde"), ("wide", b"456789AB")])
    raw = (tmp_path / "model.safetensors").read_bytes()
    assert raw == LAYOUT.header + b"0123456789ABabcde"
    b = write(tmp_path, [("wide", memoryview(np.frombuffer(b"0123456789AB", np.float32))), ("flat", b"abcde")])
    assert a == b
    assert (tmp_path / "model.safetensors").read_bytes() == raw
    assert names_of(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("pieces", [[], [("wide", b"0" * 12)], [("wide", b"0" * 12), ("flat", b"123456")]])
def test_a_wrong_number_of_bytes_is_a_bug_and_leaves_nothing(tmp_path, pieces):
    with pytest.raises(RuntimeError, match="bytes written"):
        write(tmp_path, pieces)
    assert names_of(tmp_path) == []


def test_an_error_leaves_the_older_file_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, LAYOUT) as writer:
        writer.append("flat", b"ab")
        raise KeyboardInterrupt
    assert (tmp_path / "model.safetensors").read_bytes() == b"old"
    assert names_of(tmp_path) == ["model.safetensors"]


def test_the_space_is_taken_at_once(tmp_path):
    large = ShardLayout("model.safetensors", (Stored("a", "U8", (1 << 20,)),))
    with ShardWriter(tmp_path, large):
        assert (tmp_path / "model.safetensors.partial").stat().st_size == large.file_bytes


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_reserve(tmp_path, monkeypatch, code):
    def cannot(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    write(tmp_path, [("wide", b"0" * 12), ("flat", b"12345")])


def test_short_writes_are_continued(tmp_path, monkeypatch):
    original = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: original(file, bytes(data)[:3], place))
    write(tmp_path, [("wide", b"0123456789AB"), ("flat", b"abcde")])
    assert (tmp_path / "model.safetensors").read_bytes() == LAYOUT.header + b"0123456789ABabcde"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ENOSPC, "the disk is full: `x`"),
        (errno.EDQUOT, "the disk is full: `x`"),
        (errno.EIO, "`x` cannot be written"),
    ],
)
def test_refusals_of_the_disk(code, text):
    with pytest.raises(MachineError) as caught, disk_errors(Path("x")):
        raise OSError(code, os.strerror(code))
    assert caught.value.what == text


def test_a_small_file_is_old_or_new(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(MachineError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_the_header_is_padded_and_compact():
    text = LAYOUT.header[8:]
    assert len(LAYOUT.header) % 8 == 0
    assert int.from_bytes(LAYOUT.header[:8], "little") == len(text)
    assert json.loads(text)["__metadata__"] == {"format": "pt"}
    assert b": " not in text
