"""The next token: what may be drawn, with which probability, and the same again with a seed."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tqcli.server.sampling import Sampler, Sampling

LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.0, -1.0])


def drawn(settings: Sampling, number: int = 400, logits: torch.Tensor = LOGITS) -> Counter:
    """Of fresh samplers, so that penalties do not add up."""
    return Counter(Sampler(_seeded(settings, seed), ()).pick(logits).token for seed in range(number))


def _seeded(settings: Sampling, seed: int) -> Sampling:
    return Sampling(**{**vars(settings), "seed": seed})


def test_temperature_0_takes_the_likeliest():
    sampler = Sampler(Sampling(temperature=0), ())
    assert [sampler.pick(LOGITS).token for _ in range(5)] == [1] * 5


def test_the_smallest_temperature_does_not_overflow():
    assert set(drawn(Sampling(temperature=1e-300), 20, LOGITS * 1e4)) == {1}


def test_draws_follow_the_softmax():
    found = drawn(Sampling(temperature=2.0), 4000)
    wanted = torch.softmax(LOGITS / 2, dim=-1)
    for token, probability in enumerate(wanted.tolist()):
        assert found[token] / 4000 == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (Sampling(top_k=1), {1}),
        (Sampling(top_k=2), {1, 2}),
        (Sampling(top_k=99), {0, 1, 2, 3, 4}),
        (Sampling(top_p=0.001), {1}),
        # softmax: 0.636, 0.234, 0.086, 0.032, 0.012
        (Sampling(top_p=0.6), {1}),
        (Sampling(top_p=0.7), {1, 2}),
        (Sampling(top_p=0.9), {0, 1, 2}),
        (Sampling(min_p=0.3), {1, 2}),
        (Sampling(top_k=3, min_p=1.0), {1}),
        (Sampling(), {0, 1, 2, 3, 4}),
    ],
)
def test_what_may_be_drawn(settings, allowed):
    assert set(drawn(settings)) == allowed


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_a_seed_repeats(seed):
    settings = Sampling(seed=seed, top_p=0.95)
    first, second = Sampler(settings, ()), Sampler(settings, ())
    assert [first.pick(LOGITS).token for _ in range(8)] == [second.pick(LOGITS).token for _ in range(8)]


def test_without_a_seed_answers_differ():
    flat = torch.zeros(1000)
    samplers = [Sampler(Sampling(), ()) for _ in range(2)]
    one, other = ([sampler.pick(flat).token for _ in range(8)] for sampler in samplers)
    assert one != other


def test_log_probabilities_are_the_models_own():
    picked = Sampler(Sampling(temperature=0, repetition_penalty=3.0), (1,), top_logprobs=2).pick(LOGITS)
    wanted = torch.log_softmax(LOGITS, dim=-1)
    assert picked.token == 2
    assert picked.logprob == pytest.approx(float(wanted[2]))
    assert [token for token, _ in picked.top] == [1, 2]
    assert [value for _, value in picked.top] == pytest.approx([float(wanted[1]), float(wanted[2])])
    assert Sampler(Sampling(temperature=0), ()).pick(LOGITS).top == ()


@pytest.mark.parametrize(
    ("penalty", "tokens"),
    [
        ({"presence_penalty": 1.5}, [1, 2, 1, 1]),
        ({"frequency_penalty": 0.9}, [1, 1, 2, 1]),
        ({"frequency_penalty": -1.0}, [1, 1, 1, 1]),
        ({"repetition_penalty": 2.0}, [1, 2, 1, 1]),
    ],
)
def test_penalties_of_what_was_written(penalty, tokens):
    sampler = Sampler(Sampling(temperature=0, **penalty), ())
    assert [sampler.pick(LOGITS).token for _ in range(4)] == tokens


def test_the_logits_that_were_given_stay():
    before = LOGITS.clone()
    sampler = Sampler(Sampling(repetition_penalty=2, presence_penalty=1, frequency_penalty=1, seed=1), (1, 2))
    for _ in range(3):
        sampler.pick(LOGITS)
    assert torch.equal(LOGITS, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers(value):
    with pytest.raises(ArithmeticError):
        Sampler(Sampling(), ()).pick(torch.full((4,), value))
    if value != -float("inf"):
        with pytest.raises(ArithmeticError):
            Sampler(Sampling(), ()).pick(torch.tensor([0.0, value, 1.0]))


def test_tokens_that_the_model_excludes_are_never_drawn():
    logits = torch.tensor([0.0, -float("inf"), 0.0])
    assert set(drawn(Sampling(), 100, logits)) == {0, 2}
    assert set(drawn(Sampling(top_p=0.99), 100, logits)) == {0, 2}
