import math

import pytest
import torch

from tqcli.errors import InputError
from tqcli.quality.evaluate import evaluate, logits_of, token_windows

VOCABULARY = 7


def bigram(ids):
    """Logits that depend on the token alone: the next one is twice as likely as each other."""
    logits = torch.zeros(*ids.shape, VOCABULARY)
    return logits.scatter(-1, ((ids + 1) % VOCABULARY)[..., None], math.log(2))


def flat(ids):
    return torch.zeros(*ids.shape, VOCABULARY)


def test_windows_reach_from_the_start_to_the_end():
    windows = token_windows(list(range(100)), 3, 9)
    assert windows.dtype == torch.int64
    assert windows[0].tolist() == list(range(10))
    assert windows[1].tolist() == list(range(45, 55))
    assert windows[2].tolist() == list(range(90, 100))


def test_windows_that_just_fit_do_not_overlap():
    assert token_windows(list(range(30)), 3, 9).flatten().tolist() == list(range(30))


def test_one_window_is_the_start():
    assert token_windows(list(range(30)), 1, 4).tolist() == [[0, 1, 2, 3, 4]]


def test_bos_takes_the_place_of_the_first_token():
    assert token_windows(list(range(10)), 2, 4, bos=99).tolist() == [[99, 1, 2, 3, 4], [99, 6, 7, 8, 9]]


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(InputError, match="too short"):
        token_windows(list(range(29)), 3, 9)


@pytest.mark.parametrize(("count", "length"), [(0, 4), (2, 0), (-1, 4)])
def test_no_windows_are_refused(count, length):
    with pytest.raises(ValueError, match="windows of"):
        token_windows(list(range(29)), count, length)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_each_token_is_predicted_from_those_before_it(batch):
    """Counting text: every target is the one that `bigram` prefers, whatever the batch."""
    windows = token_windows([i % VOCABULARY for i in range(40)], 3, 9)
    found = evaluate(bigram, flat, windows, batch=batch)
    assert found.tokens == 27
    assert found.reference_perplexity == pytest.approx((VOCABULARY + 1) / 2)
    assert found.perplexity == pytest.approx(VOCABULARY)
    preferred, rest = 2 / (VOCABULARY + 1), 1 / (VOCABULARY + 1)
    expected = preferred * math.log(preferred * VOCABULARY) + (VOCABULARY - 1) * rest * math.log(rest * VOCABULARY)
    assert found.kl_mean == pytest.approx(expected)


def test_a_model_agrees_with_itself():
    found = evaluate(bigram, bigram, token_windows(list(range(7)) * 4, 2, 8))
    assert found.kl_max == 0
    assert found.top1_agreement == 1
    assert found.perplexity == found.reference_perplexity


def test_logits_of_calls_a_model_without_cache():
    class Output:
        logits = torch.ones(1, 2, 3)

    class Model:
        device = torch.device("cpu")

        def __call__(self, *, input_ids, use_cache):
            assert not use_cache
            assert torch.is_inference_mode_enabled()
            return Output()

    assert logits_of(Model())(torch.zeros(1, 2, dtype=torch.int64)).shape == (1, 2, 3)
