"""Token by token gives what transformers' own generation gives."""

from pathlib import Path

import pytest
import torch
from support import tiny_models

import tqcli
from tqcli.server import decoding
from tqcli.server.decoding import Decoder, Generation
from tqcli.server.sampling import Sampling

PROMPT = (2, *range(20, 60))
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module", params=["gemma4", "llama"])
def model(request, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    folder.mkdir()
    tiny_models.BUILDERS[request.param](folder)
    return tqcli.load(folder, dtype=torch.float32)[0]


def caches(model):
    from transformers import DynamicCache

    return lambda: DynamicCache(config=model.config)


def written(model, number: int, sampling: Sampling = GREEDY) -> list[int]:
    tokens = Decoder(model, caches(model)).tokens(Generation(PROMPT, number, sampling), lambda: False)
    return [next(tokens).token for _ in range(number)]


@pytest.mark.parametrize("piece", [1, 7, 512])
def test_as_generate_writes(model, monkeypatch, piece):
    """Also where the prompt comes in pieces, and is longer than the sliding window."""
    monkeypatch.setattr(decoding, "PROMPT_PIECE", piece)
    ids = torch.tensor([PROMPT])
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(PROMPT) :].tolist()
    assert written(model, 24) == expected


def test_a_seed_gives_the_same_answer_again(model):
    first, second, other = (written(model, 12, Sampling(seed=seed)) for seed in (5, 5, 6))
    assert first == second
    assert first != other


def test_nobody_waits(model):
    asked = 0

    def is_cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    assert len(list(Decoder(model, caches(model)).tokens(Generation(PROMPT, 99, GREEDY), is_cancelled))) == 1
    assert list(Decoder(model, caches(model)).tokens(Generation(PROMPT, 99, GREEDY), lambda: True)) == []
