"""The frozen codebooks: their bytes, their symmetry, what they lose on Gaussian weights, and how they were made."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tq_kernels import trellis_reference

from tqcli.codec.trellis_codebooks import CODEBOOKS, SCALES, UNITS_PER_DEVIATION, codebook, scale_candidates

TRAINER = Path(__file__).resolve().parents[2] / "scripts" / "train_trellis"
FROZEN = {
    2: "4ae65eb752b9e4ff758e2c8aad254de1db045041db6cd3fcc89e014e1d3569d9",
    3: "8a4d119076854797edf109df3c946450a4f1f9f79efa3d3873bcd9d2f6ebc152",
    4: "c994a514db3ba35280de079b8d7220b347ff34a55966e1bb2585e365c03c70d0",
}
SEEDS = {2: 8, 3: 15, 4: 11}
# Relative squared error with the three candidates, measured on 8 million weights.
LOSSES = {2: 0.068468, 3: 0.017779, 4: 0.004662}


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_number_ever_changes(bits):
    assert hashlib.sha256(codebook(bits).tobytes()).hexdigest() == FROZEN[bits]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_an_inverted_window_has_the_negative_number(bits):
    numbers = codebook(bits).astype(int)
    assert (numbers[::-1] == -numbers).all()
    assert np.abs(numbers).max() <= 127


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_multiplier_one_is_the_encoders(bits):
    """The kernels tell the width of a codebook from its numbers; the multipliers here are meant for that width."""
    deviation = float(trellis_reference.deviation(codebook(bits), bits)) / trellis_reference.UNITS
    assert UNITS_PER_DEVIATION[bits] == pytest.approx(deviation, rel=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loss_on_gaussian_weights(bits):
    weights = _normal_groups(256)
    lost = [_losses(weights, bits, scale) for scale in scale_candidates(bits, 3)]
    assert np.min(lost, axis=0).mean() == pytest.approx(LOSSES[bits], rel=0.03)
    for scale_lost in lost:
        assert scale_lost.mean() > np.min(lost, axis=0).mean() * 1.005


def test_candidates():
    assert {bits: scale_candidates(bits, 3) for bits in CODEBOOKS} == SCALES
    for count in (1, 2, 3, 5, 7):
        assert all(len(scale_candidates(bits, count)) == count for bits in CODEBOOKS)


def test_tables_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        codebook(3)[0] = 0


@pytest.mark.parametrize("bits", [0, 1, 5, 8])
def test_other_widths(bits):
    with pytest.raises(ValueError, match="expected 2, 3 or 4"):
        codebook(bits)
    with pytest.raises(ValueError, match="expected 2, 3 or 4"):
        scale_candidates(bits, 3)


@pytest.mark.parametrize("count", [0, 4, 8])
def test_other_counts(count):
    with pytest.raises(ValueError, match="count"):
        scale_candidates(3, count)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the trainer compiles its search for paths")
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_trained_again(bits):
    command = [sys.executable, str(TRAINER), str(bits), "--first-seed", str(SEEDS[bits])]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert tuple(report["codebook"]) == CODEBOOKS[bits]


def _normal_groups(count: int) -> np.ndarray:
    drawn = np.random.default_rng(20251125).standard_normal((count, 128))
    return drawn / np.sqrt((drawn * drawn).mean(axis=1, keepdims=True))


def _losses(weights: np.ndarray, bits: int, scale: float) -> np.ndarray:
    """Relative squared error of each group, by a Viterbi search in floating point with a least-squares scale."""
    numbers = codebook(bits) / UNITS_PER_DEVIATION[bits]
    windows = np.arange(256)
    before = windows & ((1 << (8 - bits)) - 1)
    sums = np.zeros((len(weights), 1 << (8 - bits)))
    back = []
    for column in weights.T:
        ways = (sums[:, before] + (scale * column[:, None] - numbers) ** 2).reshape(len(weights), -1, 1 << bits)
        back.append(ways.argmin(axis=2))
        sums = ways.min(axis=2)
    state, every = sums.argmin(axis=1), np.arange(len(weights))
    levels = np.empty_like(weights)
    for place in range(weights.shape[1] - 1, -1, -1):
        window = state << bits | back[place][every, state]
        levels[:, place] = numbers[window]
        state = before[window]
    product, square = (weights * levels).sum(axis=1), (levels * levels).sum(axis=1)
    return 1 - product**2 / square / weights.shape[1]
