"""Backends, weights and golden vectors for the kernel tests."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tq_kernels import library

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tq"
GOLDEN_CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "tq_codec_golden.json").read_text())


def native_backends() -> list[str]:
    found = library.load_library()
    return [name for name in ("portable", "avx2", "avx512", "neon") if found is not None and found.has(name)]


@pytest.fixture(params=["reference", *native_backends()])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once for every backend of this machine."""
    monkeypatch.setenv("TQ_KERNELS", request.param)
    return request.param


@pytest.fixture(params=native_backends() or [pytest.param("", marks=pytest.mark.skip("no native library"))])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once for every native backend of this machine."""
    monkeypatch.setenv("TQ_KERNELS", request.param)
    return request.param


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=sorted(GOLDEN_CASES))
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One golden case: bits, group_size and the tensors input, tq_packed, tq_norms, decoded."""
    with safe_open(GOLDEN / "tq_codec_golden.safetensors", "pt") as file:
        parts = ("input", "tq_packed", "tq_norms", "decoded")
        tensors = {part: file.get_tensor(f"{request.param}.{part}") for part in parts}
    return {**GOLDEN_CASES[request.param], **tensors}


@pytest.fixture
def stored_as() -> Callable[[np.ndarray, str], np.ndarray]:
    """Float32 numbers as an array of a storage type; BF16 comes as uint16."""

    def convert(values: np.ndarray, dtype: str) -> np.ndarray:
        values = np.ascontiguousarray(values, dtype=np.float32)
        if dtype == "F32":
            return values
        if dtype == "F16":
            return np.clip(values, -65504, 65504).astype(np.float16)
        return torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()

    return convert
