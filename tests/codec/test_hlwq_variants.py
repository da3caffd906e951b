"""The older layouts decode to the weights of the present one, from golden bytes where there are any."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import read_file

from tqcli.codec import hlwq_variants as variants
from tqcli.codec.hlwq_tables import BITS, levels
from tqcli.formats.hlwq import Hlwq

NUMPY = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "I8": np.int8, "U8": np.uint8, "BF16": np.uint16}
GOLDEN = {
    name: np.frombuffer(data, NUMPY[dtype]).reshape(shape)
    for name, (dtype, shape, data) in read_file(
        Path(__file__).resolve().parents[1] / "golden" / "hlwq" / "hlwq_golden.safetensors"
    ).items()
}
MATRICES = ("w_aligned", "w_nonaligned")


def loss(decoded, truth):
    return float(((decoded - truth) ** 2).sum() / (truth.astype(np.float64) ** 2).sum())


def scaled(table, bits):
    return (levels(table, bits) / np.float32(np.sqrt(128))).astype(np.float32)


@pytest.mark.parametrize("matrix", MATRICES)
def test_v5_package(matrix):
    """Packed and unpacked codes of the published encoder give the same weights, near the original."""
    truth, norms = GOLDEN[matrix], GOLDEN[f"{matrix}.v5.norms"]
    table = GOLDEN[f"{matrix}.v5.ct_scaled"]
    columns = truth.shape[1]
    packed = variants.decode_polar_engine(GOLDEN[f"{matrix}.v5.codes_packed"], norms, table, columns)
    unpacked = variants.decode_polar_engine(GOLDEN[f"{matrix}.v5.codes_unpacked"], norms, table, columns)
    assert packed.tobytes() == unpacked.tobytes()
    assert packed.shape == truth.shape
    assert 0.002 < loss(packed, truth) < 0.0035


@pytest.mark.parametrize("matrix", MATRICES)
def test_v5_notebook_is_the_present_format_unpacked(matrix):
    """The same indices as in `__packed`, one byte each, with the same table: the same weights to the bit."""
    norms = GOLDEN[f"{matrix}.q5__norms"]
    columns = GOLDEN[matrix].shape[1]
    indices = np.unpackbits(GOLDEN[f"{matrix}.q5__packed"]).reshape(-1, 5) @ np.array([16, 8, 4, 2, 1])
    codes = indices.astype(np.int8).reshape(len(norms), -1)
    decoded = variants.decode_unpacked(codes, norms, levels("truncated", 5), columns)
    expected = Hlwq().decode((GOLDEN[f"{matrix}.q5__packed"], norms), columns)
    assert decoded.tobytes() == expected.tobytes()


def test_golden_streams():
    first_low = variants.lowest_first(GOLDEN["q5_lsb_v5_bytes"], 5)
    assert np.array_equal(first_low, GOLDEN["q5_msb_codes"].reshape(-1))
    assert np.array_equal(variants.half_blocks(GOLDEN["v4_nibble_bytes"]), GOLDEN["v4_nibble_codes"])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_v4_nibbles(bits):
    truth = np.random.default_rng(bits).standard_normal((5, 256)).astype(np.float32)
    hlwq = Hlwq(bits=bits, table="unbounded")
    packed, norms = hlwq.encode(truth, "F32")
    codes = _indices(packed, bits).reshape(-1, 128)
    nibbles = (codes[:, :64] | codes[:, 64:] << 4).reshape(5, -1)
    decoded = variants.decode_polar_engine(nibbles, norms, scaled("unbounded", bits), 256)
    np.testing.assert_allclose(decoded, hlwq.decode((packed, norms), 256), atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_v4_bytes(bits):
    """A byte an index, kept as int8: the upper half of 8-bit indices comes as negative numbers."""
    truth = np.random.default_rng(bits).standard_normal((5, 200)).astype(np.float32)
    hlwq = Hlwq(bits=bits, table="unbounded")
    packed, norms = hlwq.encode(truth, "F32")
    codes = _indices(packed, bits).view(np.int8).reshape(5, -1)
    decoded = variants.decode_polar_engine(codes, norms, scaled("unbounded", bits), 200)
    np.testing.assert_allclose(decoded, hlwq.decode((packed, norms), 200), atol=1e-6)


def _indices(packed, bits):
    stream = np.unpackbits(packed).reshape(-1, bits)
    return (stream @ (1 << np.arange(bits - 1, -1, -1))).astype(np.uint8)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("bits", BITS)
def test_multi(matrix, bits):
    truth = GOLDEN[matrix]
    parts = [GOLDEN[f"{matrix}.q{bits}__{part}"] for part in ("packed", "norms", "meta4")]
    expected = Hlwq(bits=bits).decode((parts[0], parts[1]), truth.shape[1])
    decoded = variants.decode_multi(*parts, levels("truncated", bits), columns=truth.shape[1])
    assert decoded.tobytes() == expected.tobytes()
    padded = variants.decode_multi(*parts, levels("truncated", bits))
    assert padded.shape == (len(truth), 256)
    meta = np.append(parts[2], truth.shape[1])
    assert variants.decode_multi(*parts[:2], meta, levels("truncated", bits)).tobytes() == expected.tobytes()


@given(indices=st.lists(st.integers(0, 31), min_size=8, max_size=64), bits=st.just(5))
@settings(max_examples=30, deadline=None)
def test_lowest_first_inverts_its_packing(indices, bits):
    indices = indices[: len(indices) // 8 * 8]
    number = sum(index << (bits * place) for place, index in enumerate(indices))
    codes = np.frombuffer(number.to_bytes(len(indices) * bits // 8, "little"), np.uint8)
    assert variants.lowest_first(codes, bits).tolist() == indices


def test_unscaled_is_the_table_again():
    for bits in BITS:
        np.testing.assert_allclose(variants.unscaled(scaled("unbounded", bits)), levels("unbounded", bits), rtol=1e-7)


NORMS = np.ones((2, 2), np.float16)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ([2, 2, 128], "4 or 5 numbers"),
        ([2, 2, 64, 256], "blocks of 64"),
        ([2, 2, 128, 500], "does not go with"),
        ([2, 3, 128, 768], "does not go with"),
        ([2, 2, 128, 512, 128], "does not go with"),
        ([2, 2, 128, 512, 257], "does not go with"),
        ([2, 2, 128, 512, 0], "does not go with"),
    ],
)
def test_meta_that_contradicts(meta, message):
    with pytest.raises(ValueError, match=message):
        variants.decode_multi(np.zeros(320, np.uint8), NORMS, np.array(meta), levels("truncated", 5))


def test_columns_that_contradict():
    with pytest.raises(ValueError, match="has 200 columns, the file 250"):
        meta = np.array([2, 2, 128, 512, 250])
        variants.decode_multi(np.zeros(320, np.uint8), NORMS, meta, levels("truncated", 5), columns=200)
    with pytest.raises(ValueError, match="columns need norms"):
        meta = np.array([2, 2, 128, 512])
        variants.decode_multi(np.zeros(320, np.uint8), NORMS, meta, levels("truncated", 5), columns=300)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="index 32 has no level"):
        variants.decode_unpacked(np.full((2, 256), 32, np.int8), NORMS, levels("truncated", 5), 256)
    with pytest.raises(ValueError, match="500 bytes are no 512 indices of 5 bits"):
        variants.decode_polar_engine(np.zeros(500, np.int8), NORMS, scaled("unbounded", 5), 256)
    with pytest.raises(ValueError, match="320 bytes are no 512 indices of 4 bits"):
        variants.decode_polar_engine(np.zeros(320, np.uint8), NORMS, scaled("unbounded", 4), 256)
    with pytest.raises(ValueError, match="no whole number of blocks"):
        variants.half_blocks(np.zeros(65, np.uint8))
