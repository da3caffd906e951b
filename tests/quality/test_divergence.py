import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tqcli.quality import divergence
from tqcli.quality.divergence import TokenDivergence, compare_logits, join, summarise


def logits_for(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def entry(**columns):
    defaults = {"kl": [0.0], "agrees": [True], "reference_loss": [0.0], "loss": [0.0]} | columns
    return TokenDivergence(**{name: torch.tensor(values) for name, values in defaults.items()})


def test_kl_of_two_coins_is_the_closed_form():
    found = compare_logits(logits_for(0.75, 0.25), logits_for(0.5, 0.5), torch.tensor([1]))
    assert found.kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-15)
    assert found.reference_loss.item() == pytest.approx(math.log(4), abs=1e-15)
    assert found.loss.item() == pytest.approx(math.log(2), abs=1e-15)


def test_kl_is_of_the_reference_not_of_the_other():
    a, b, target = logits_for(0.9, 0.1), logits_for(0.5, 0.5), torch.tensor([0])
    forward, backward = compare_logits(a, b, target).kl.item(), compare_logits(b, a, target).kl.item()
    assert forward == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert backward == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5))


def test_uniform_logits_have_the_vocabulary_as_perplexity():
    flat = torch.zeros(3, 50)
    found = summarise(compare_logits(flat, flat + 7, torch.tensor([0, 10, 49])))
    assert found.perplexity == pytest.approx(50)
    assert found.reference_perplexity == pytest.approx(50)
    assert found.kl_mean == 0
    assert found.tokens == 3


def test_small_differences_survive_float32_logits():
    """KL of a shift by d in one of two equal logits is d**2 / 8 to first order, far below float32's rounding here."""
    reference = torch.zeros(1, 2, dtype=torch.float32)
    other = torch.tensor([[1e-6, 0.0]], dtype=torch.float32)
    assert compare_logits(reference, other, torch.tensor([0])).kl.item() == pytest.approx(1.25e-13, rel=1e-3)


def test_top_1_agreement_counts_tokens():
    reference = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    other = torch.tensor([[5.0, 1.0], [0.0, 1.0], [0.0, 9.0], [0.0, 1.0]])
    found = compare_logits(reference, other, torch.zeros(4, dtype=torch.int64))
    assert found.agrees.tolist() == [True, False, True, False]
    assert summarise(found).top1_agreement == 0.5


def test_a_token_that_the_reference_rules_out_adds_nothing():
    reference = torch.tensor([[0.0, 0.0, -math.inf]])
    other = torch.tensor([[0.0, 0.0, 0.0]])
    assert compare_logits(reference, other, torch.tensor([0])).kl.item() == pytest.approx(math.log(1.5))


def test_a_token_that_only_the_other_rules_out_costs_everything():
    reference, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -math.inf]])
    assert compare_logits(reference, other, torch.tensor([0])).kl.item() == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_refused(bad):
    with pytest.raises(ValueError, match="NaN"):
        compare_logits(torch.zeros(1, 2), torch.tensor([[0.0, bad]]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("reference", "other", "targets"),
    [((2, 3), (2, 4), 2), ((2, 3), (3, 3), 2), ((2, 3), (2, 3), 3), ((0, 3), (0, 3), 0), ((3,), (3,), 3)],
)
def test_shapes_that_do_not_fit_are_refused(reference, other, targets):
    with pytest.raises(ValueError, match="needed"):
        compare_logits(torch.zeros(reference), torch.zeros(other), torch.zeros(targets, dtype=torch.int64))


def test_percentiles_are_those_of_numpy():
    found = summarise(
        entry(kl=[float(i) for i in range(11)], agrees=[True] * 11, reference_loss=[0.0] * 11, loss=[0.0] * 11)
    )
    assert (found.kl_median, found.kl_p90, found.kl_max) == (5.0, 9.0, 10.0)
    assert found.kl_p99 == pytest.approx(9.9)


@given(st.integers(1, 40), st.integers(2, 30), st.integers(0, 2**32))
def test_chunks_do_not_change_the_result(tokens, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    reference, other = torch.randn(2, tokens, vocabulary, generator=generator)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    whole = compare_logits(reference, other, targets)
    single = join([compare_logits(reference[i : i + 1], other[i : i + 1], targets[i : i + 1]) for i in range(tokens)])
    for name in ("kl", "agrees", "reference_loss", "loss"):
        assert torch.allclose(getattr(whole, name).double(), getattr(single, name).double(), rtol=1e-12, atol=1e-15)
    assert (whole.kl >= 0).all()
    against_torch = torch.nn.functional.kl_div(
        other.double().log_softmax(-1), reference.double().log_softmax(-1), log_target=True, reduction="none"
    )
    assert torch.allclose(whole.kl, against_torch.sum(-1), atol=1e-14)


def test_large_inputs_are_split(monkeypatch):
    monkeypatch.setattr(divergence, "_CHUNK_LOGITS", 8)
    seen = []
    compare = divergence._compare
    monkeypatch.setattr(divergence, "_compare", lambda *part: seen.append(len(part[0])) or compare(*part))
    assert len(compare_logits(torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)).kl) == 5
    assert seen == [2, 2, 1]
