"""How far a model that is being changed is from what it was at first: one number over windows of a text.

Left out: what is changed (`perturbation`).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tqcli.errors import InputError
from tqcli.quality.divergence import compare_logits
from tqcli.quality.evaluate import logits_of, token_windows

WINDOWS = 8
LENGTH = 256


class Meter:
    """Mean KL divergence of a changing model from what it was at first, in nats, over windows of text.

    Windows run side by side, each on one thread: the result does not depend on how many there are.
    """

    def __init__(self, model: Any, windows: torch.Tensor, workers: int) -> None:
        """windows: int64 (count, length + 1), the last column only predicted. InputError where the model gives NaN."""
        self._logits = logits_of(model)
        self._windows = windows
        self._workers = workers
        self._reference = self._run()
        if any(bool(logits.isnan().any()) for logits in self._reference):
            raise InputError("the model gives NaN", why="its weights, or its arithmetic, are not right")

    def __call__(self) -> float:
        """Of the model as it is now."""
        found = zip(self._reference, self._run(), self._windows[:, 1:], strict=True)
        parts = [compare_logits(*one).kl.mean().item() for one in found]
        return sum(parts) / len(parts)

    def _run(self) -> list[torch.Tensor]:
        with one_thread_each(), ThreadPoolExecutor(self._workers, thread_name_prefix="window") as pool:
            return list(pool.map(lambda window: self._logits(window[None, :-1])[0], self._windows))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Inside, torch uses no threads of its own: sums are taken in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_windows(tokenizer: Any, text: Path, count: int = WINDOWS, length: int = LENGTH) -> torch.Tensor:
    """At most `count` windows of a text. Raises InputError where it cannot be read, or fills not even one."""
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"`{text}` is not UTF-8 text", why=str(error)) from error
    except OSError as error:
        raise InputError(f"`{text}` cannot be read", why=error.strerror or str(error)) from error
    tokens = tokenizer(content, add_special_tokens=False)["input_ids"]
    return token_windows(tokens, max(1, min(count, len(tokens) // (length + 1))), length)
