"""The levels are the best there are."""

import pytest
import torch

from tqcli.codec.lloyd_max import POSITIVE_LEVELS
from tqcli.kv.levels import boundaries, levels, squared_error

# Max, "Quantizing for minimum distortion" (1960), and its later continuations.
PUBLISHED = {2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499, 6: 0.000641, 7: 0.000163, 8: 0.0000412}


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_error_is_the_published_optimum(bits):
    assert squared_error(bits) == pytest.approx(PUBLISHED[bits], rel=6e-3)


def test_three_bits_are_the_levels_of_the_checkpoint_format():
    assert levels(3)[4:] == pytest.approx(POSITIVE_LEVELS[3], abs=2e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_ascend_and_are_symmetric(bits):
    found = levels(bits)
    assert len(found) == 2**bits
    assert list(found) == sorted(set(found))
    assert [-value for value in reversed(found)] == list(found)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_error_is_that_of_samples(bits):
    numbers = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = torch.tensor(levels(bits), dtype=torch.float64)
    nearest = table[torch.bucketize(numbers, torch.tensor(boundaries(levels(bits)), dtype=torch.float64))]
    assert (numbers - nearest).square().mean().item() == pytest.approx(squared_error(bits), rel=0.01)
