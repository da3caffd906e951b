"""One thread for torch while a layer computes a few tokens, so that the products have the processor to themselves.

torch's own threads stay busy for about a millisecond after each of its operations that uses them (attention, a router),
waiting for the next one, and would take the cores from the products in between. What is left to torch at a few tokens
is too little for several threads anyway.

Left out: heads and embeddings, which may be large and not packed.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tqcli.runtime.transformers.products import most_tokens
from tqcli.runtime.transformers.weight import TqWeight


class _Before:
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        hidden = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden, Tensor) and hidden.numel() <= most_tokens() * hidden.shape[-1]:
            torch.set_num_threads(1)


class _After:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __call__(self, *_: Any) -> None:
        torch.set_num_threads(self.threads)


def limit_threads(model: nn.Module, threads: int) -> None:
    """From now on layers with packed weights compute a few tokens with one thread of torch, and set `threads` after."""
    release_threads(model)
    if threads == 1:
        return
    for layer in _layers(model):
        layer.register_forward_pre_hook(_Before(), with_kwargs=True)
        layer.register_forward_hook(_After(threads), always_call=True)


def release_threads(model: nn.Module) -> None:
    """Undo `limit_threads`."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):  # noqa: SLF001  # torch lists them nowhere else
            for number in [number for number, hook in hooks.items() if isinstance(hook, (_Before, _After))]:
                del hooks[number]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Items of the outermost lists of modules that hold packed weights."""
    for child in module.children():
        if not isinstance(child, nn.ModuleList):
            yield from _layers(child)
            continue
        for layer in child:
            if any(isinstance(part, TqWeight) for part in layer.modules()):
                yield layer
