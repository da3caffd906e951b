"""One thread for torch while a model computes a few tokens, so that the products have the processor to themselves.

torch's own threads stay busy for about a millisecond after each of its operations that uses them (attention, a router),
waiting for the next one, and would take the cores from the products in between. What is left to torch at a few tokens
is too little for several threads anyway.

Left out: a head that is not packed, which is work enough for all threads.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tqcli.runtime.transformers.modules import TqLinear, TqTiedHead

# The work of torch's operations on as many is less than what its waiting threads take away.
FEW_TOKENS = 32


class _Before:
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        if 0 < _tokens(args, kwargs) <= FEW_TOKENS:
            torch.set_num_threads(1)


class _After:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __call__(self, *_: Any) -> None:
        # Asking is cheap, and setting is not.
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


def limit_threads(model: Any, threads: int) -> None:
    """From now on `model` computes a few tokens with one thread of torch, and sets `threads` after.

    threads: that torch has otherwise. A module that is no whole model of transformers is left alone.
    """
    release_threads(model)
    body: Any = getattr(model, "base_model", None)
    if threads == 1 or body is None:
        return
    if isinstance(model.get_output_embeddings(), (TqLinear, TqTiedHead)):
        body = model
    body.register_forward_pre_hook(_Before(), with_kwargs=True)
    body.register_forward_hook(_After(threads), always_call=True)


def release_threads(model: nn.Module) -> None:
    """Undo `limit_threads`."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):  # noqa: SLF001  # torch lists them nowhere else
            for number in [number for number, hook in hooks.items() if isinstance(hook, (_Before, _After))]:
                del hooks[number]


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Of a call of a model; 0 where it cannot be told."""
    ids = args[0] if args else kwargs.get("input_ids")
    if isinstance(ids, Tensor):
        return ids.numel()
    embedded = kwargs.get("inputs_embeds")
    return embedded.numel() // embedded.shape[-1] if isinstance(embedded, Tensor) else 0
