"""The fixture model's tokenizer, and one thread for torch."""

from pathlib import Path

import pytest
import torch

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_gemma4"


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
