"""Offloading hooks of modules whose `forward` is never called.

accelerate moves a module's tensors when its `forward` runs. A `TqWeight` has none: its owner reads it. Without this
an offloaded weight would be read from the meta device, and the result would be NaN without an error.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def in_place(*weights: Any) -> Iterator[None]:
    """Have the weights on their execution device; those without a hook, such as parameters, already are."""
    with ExitStack() as stack:
        for weight in weights:
            hook = getattr(weight, "_hf_hook", None)
            if hook is not None:
                hook.pre_forward(weight)
                stack.callback(hook.post_forward, weight, ())
        yield
