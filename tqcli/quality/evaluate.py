"""Run two models over the same windows of text and compare what they predict.

Models are anything that transformers loads, whole or compressed. Left out: loading and converting them, and choosing
the text: take one that the model was made for, since perplexity over foreign text says little of an instruction-tuned
model, while its divergence from the original still does.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tqcli.errors import InputError
from tqcli.quality.divergence import Divergence, TokenDivergence, compare_logits, join, summarise

# (batch, length) token ids -> (batch, length, vocabulary) logits of the token that follows each.
Logits = Callable[[Tensor], Tensor]


def token_windows(tokens: Sequence[int], count: int, length: int, *, bos: int | None = None) -> Tensor:
    """`count` windows at even distances, the first at the start and the last at the end of the text.

    Returns int64 (count, length + 1): the last column is only predicted. With `bos`, it stands before each window in
    place of the window's first token. Raises InputError where the text is too short for windows without overlap.
    """
    if count < 1 or length < 1:
        raise ValueError(f"{count} windows of {length} tokens")
    width = length + 1
    if len(tokens) < count * width:
        why = f"it has {len(tokens)} tokens, {count} windows of {length} take {count * width}"
        raise InputError("the text is too short", why=why, fix="a longer text, or fewer windows")
    gaps = max(count - 1, 1)
    starts = [number * (len(tokens) - width) // gaps for number in range(count)]
    windows = torch.tensor([list(tokens[start : start + width]) for start in starts], dtype=torch.int64)
    if bos is not None:
        windows[:, 0] = bos
    return windows


def logits_of(model: Any) -> Logits:
    """The logits function of a transformers causal language model, on the device where it lies."""

    def run(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
        return logits

    return run


def evaluate(reference: Logits, other: Logits, windows: Tensor, *, batch: int = 8) -> Divergence:
    """Compare two models on `windows`, int64 (count, length + 1). Peak memory: two batches of logits."""
    return summarise(join(list(token_divergences(reference, other, windows, batch=batch))))


def token_divergences(
    reference: Logits, other: Logits, windows: Tensor, *, batch: int = 8
) -> Iterator[TokenDivergence]:
    """The same, one batch of windows at a time, before the summary."""
    for part in torch.split(windows, batch):
        ids, targets = part[:, :-1], part[:, 1:]
        expected, found = (logits(ids).flatten(0, 1) for logits in (reference, other))
        yield compare_logits(expected, found, targets.reshape(-1).to(expected.device))
