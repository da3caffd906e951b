"""The signs are those that torch draws, and those frozen with the golden vectors."""

import json
from pathlib import Path

import numpy as np
import pytest

from tqcli.codec import hadamard, turboquant

FROZEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "tq" / "codebooks.json").read_text())


@pytest.mark.parametrize("group_size", turboquant.GROUP_SIZES)
@pytest.mark.parametrize("seed", [0, 1, 42, 123456789, turboquant.MAX_SEED])
def test_equal_to_torch(group_size, seed):
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    for signs in hadamard.signs(group_size, seed):
        drawn = torch.randint(0, 2, (group_size,), generator=generator) * 2 - 1
        assert signs.dtype == np.float32
        assert np.array_equal(signs, drawn.numpy())


@pytest.mark.parametrize("group_size", turboquant.GROUP_SIZES)
def test_equal_to_golden(group_size):
    expected = FROZEN["signs_seed42"][f"g{group_size}"]
    values = expected.values() if isinstance(expected, dict) else expected
    for signs, text in zip(hadamard.signs(group_size, 42), values, strict=True):
        assert np.packbits(signs > 0, bitorder="little").tobytes().hex() == text
