"""Which backend runs: what TQ_KERNELS may say, what a missing or broken library means."""

import subprocess
import sys

import numpy as np
import pytest
import tq_kernels
from tq_kernels import backends, library

from tqcli.codec import turboquant


@pytest.fixture(autouse=True)
def fresh_choice():
    backends._select.cache_clear()
    library.load_library.cache_clear()
    yield
    backends._select.cache_clear()
    library.load_library.cache_clear()


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    return tmp_path


def test_each_backend_says_its_name(backend):
    chosen = tq_kernels.backend()
    assert chosen.name == ("reference" if backend == "reference" else f"cpu-{backend}")
    assert backend in chosen.reason


def test_unknown_name(monkeypatch):
    monkeypatch.setenv("TQ_KERNELS", "sse9")
    with pytest.raises(tq_kernels.KernelsUnavailable, match="`TQ_KERNELS=sse9` is not known"):
        tq_kernels.backend()


def test_an_instruction_set_that_the_machine_lacks(native, monkeypatch):
    missing = [name for name in ("avx2", "avx512", "neon") if not library.load_library().has(name)]
    if not missing:
        pytest.skip("this processor has everything")
    monkeypatch.setenv("TQ_KERNELS", missing[0])
    with pytest.raises(tq_kernels.KernelsUnavailable, match="cannot run on this"):
        tq_kernels.backend()


def test_without_a_library(no_library, monkeypatch):
    monkeypatch.delenv("TQ_KERNELS", raising=False)
    chosen = tq_kernels.backend()
    assert chosen.name == "reference"
    assert "slower" in chosen.reason
    assert "compiler" in chosen.reason
    assert "\n" not in chosen.reason
    monkeypatch.setenv("TQ_KERNELS", "portable")
    with pytest.raises(tq_kernels.KernelsUnavailable, match="no compiled kernels"):
        tq_kernels.backend()


def test_a_library_that_does_not_load(no_library, monkeypatch):
    monkeypatch.delenv("TQ_KERNELS", raising=False)
    (no_library / "_cpu.so").write_bytes(b"not a library")
    with pytest.raises(OSError, match=r"_cpu\.so"):
        tq_kernels.backend()


def test_no_torch_with_the_library(native):
    program = "\n".join(
        [
            "import sys, numpy as np, tq_kernels",
            "from tqcli.codec import turboquant",
            "tables = turboquant.tables(3, 128, 42)",
            "codes, norms = tq_kernels.encode(np.ones((2, 128), np.float32), 'F32', tables, scale='norm')",
            "tq_kernels.decode(codes, norms, 128, tables)",
            "tq_kernels.first_non_finite(norms, 'F32')",
            "assert 'torch' not in sys.modules",
        ]
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize(
    ("weight", "dtype", "arguments", "message"),
    [
        (np.ones((4, 128), np.float64), "F32", {}, "must come as float32"),
        (np.ones((4, 128), np.float32), "BF16", {}, "must come as uint16"),
        (np.ones((4, 128), np.float32), "F64", {}, "dtype must be one of"),
        (np.ones((128, 4), np.float32).T, "F32", {}, "C-contiguous"),
        (np.ones(128, np.float32), "F32", {}, "expected a matrix"),
        (np.ones((4, 0), np.float32), "F32", {}, "expected a matrix"),
        (np.ones((4, 128), np.float32), "F32", {"scale": "best"}, "scale must be"),
        (np.ones((4, 128), np.float32), "F32", {"threads": 0}, "threads must be"),
    ],
)
def test_refused_weights(weight, dtype, arguments, message, backend):
    tables = turboquant.tables(3, 128, 42)
    with pytest.raises(ValueError, match=message):
        tq_kernels.encode(weight, dtype, tables, **{"scale": "norm", **arguments})


@pytest.mark.parametrize(
    ("codes", "norms", "columns", "dtype", "message"),
    [
        (np.zeros((4, 48), np.int8), np.zeros((4, 1), np.float32), 128, "F32", "codes must be uint8"),
        (np.zeros((4, 48), np.uint8), np.zeros((4, 1), np.float64), 128, "F32", "norms float32"),
        (np.zeros((4, 48), np.uint8), np.zeros((4, 1), np.float32), 129, "F32", "need norms of shape"),
        (np.zeros((4, 47), np.uint8), np.zeros((4, 1), np.float32), 128, "F32", "need codes of shape"),
        (np.zeros((3, 48), np.uint8), np.zeros((4, 1), np.float32), 128, "F32", "need codes of shape"),
        (np.zeros((4, 48), np.uint8), np.zeros(4, np.float32), 128, "F32", "need norms of shape"),
        (np.zeros((4, 96), np.uint8)[:, ::2], np.zeros((4, 1), np.float32), 128, "F32", "C-contiguous"),
        (np.zeros((4, 48), np.uint8), np.zeros((4, 1), np.float32), 0, "F32", "columns must be positive"),
        (np.zeros((4, 48), np.uint8), np.zeros((4, 1), np.float32), 128, "I8", "dtype must be one of"),
    ],
)
def test_refused_codes(codes, norms, columns, dtype, message, backend):
    with pytest.raises(ValueError, match=message):
        tq_kernels.decode(codes, norms, columns, turboquant.tables(3, 128, 42), dtype=dtype)
