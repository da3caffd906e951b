"""A model that was really trained: equal to the stock model with decoded weights."""

from pathlib import Path

import pytest
import torch
from support import pack
from support.plain_decode import reference

import tqcli

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_gemma4"

# Its config.json is of transformers 5.18 and later.
pytest.importorskip("transformers", minversion="5.18")


def test_logits_and_text(tmp_path):
    folder = pack.write(TINY, tmp_path / "x", pack.pack_tensors(TINY), section=pack.our_section())
    model, tokenizer = tqcli.load(folder, dtype=torch.float32)
    expected = reference(TINY, folder, torch.float32)
    ids = tokenizer("The server reads the file and then", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
    options = {"max_new_tokens": 16, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), expected.generate(ids, **options))
