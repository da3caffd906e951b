"""The trellis kernels touch nothing around the arrays that they are given: each lies between pages that trap."""

import ctypes
import mmap
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from support.trellis_cases import DTYPES, matrix, random_stored, tables_of
from tq_kernels import trellis

PAGE = mmap.PAGESIZE
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mprotect of the C library")


class Guarded:
    """Memory between two pages without any access."""

    def __init__(self, pages: int) -> None:
        self.memory = mmap.mmap(-1, (pages + 2) * PAGE)
        self.pages = pages
        address = np.frombuffer(self.memory, np.uint8).ctypes.data
        self.borders = (address, address + (pages + 1) * PAGE)
        self.protect(mmap.PROT_NONE if hasattr(mmap, "PROT_NONE") else 0)

    def protect(self, access: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for border in self.borders:
            assert libc.mprotect(ctypes.c_void_p(border), ctypes.c_size_t(PAGE), access) == 0

    def array(self, like: np.ndarray, *, at_the_end: bool) -> np.ndarray:
        """A copy of `like` that ends, or begins, where the memory does."""
        offset = (self.pages + 1) * PAGE - like.nbytes if at_the_end else PAGE
        placed = np.frombuffer(self.memory, like.dtype, like.size, offset).reshape(like.shape)
        placed[:] = like
        return placed


@pytest.fixture
def guarded() -> Iterator[list[Guarded]]:
    memories = [Guarded(8) for _ in range(3)]
    yield memories
    for memory in memories:
        memory.protect(mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("columns", [16, 32, 48, 64, 112, 128, 240, 384])
@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize("bits", trellis.BITS)
def test_decoding_reads_the_arrays_only(bits, at_the_end, columns, native, guarded):
    tables = tables_of(bits, rotated=True)
    codes, meta = random_stored(np.random.default_rng(1), 3, columns, bits)
    expected = trellis.decode(codes, meta, columns, tables)
    placed = [memory.array(array, at_the_end=at_the_end) for memory, array in zip(guarded, (codes, meta), strict=False)]
    assert np.array_equal(trellis.decode(*placed, columns, tables), expected)


@pytest.mark.parametrize("columns", [16, 32, 48, 64, 112, 128, 240, 384])
@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_write_the_arrays_only(dtype, at_the_end, columns, native, guarded, monkeypatch):
    """The arrays that results go to are made in guarded memory too."""
    tables = tables_of(3, rotated=True)
    weight = matrix("normal", 3, columns, dtype, 2)
    expected = trellis.encode(weight, dtype, tables)
    decoded = trellis.decode(*expected, columns, tables, dtype)
    read_from = guarded[0].array(weight, at_the_end=at_the_end)
    made = iter(guarded[1:])
    usual = np.empty

    def in_guarded_memory(shape, dtype):
        return next(made).array(usual(shape, dtype), at_the_end=at_the_end)

    monkeypatch.setattr(trellis.np, "empty", in_guarded_memory)
    found = trellis.encode(read_from, dtype, tables)
    assert all(array.tobytes() == other.tobytes() for array, other in zip(found, expected, strict=True))
    made = iter(guarded[:1])
    assert trellis.decode(*expected, columns, tables, dtype).tobytes() == decoded.tobytes()
