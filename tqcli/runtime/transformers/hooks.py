"""Offloading hooks of modules whose `forward` is never called.

accelerate moves a module's tensors when its `forward` runs. A `TqWeight` has none: its owner reads it. Without this
an offloaded weight would be read from the meta device, and the result would be NaN without an error.
"""

from collections.abc import Iterator, Mapping
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


def keep_offloaded_dtypes(weights: Mapping[str, Any]) -> None:
    """Have offloaded codes and scales come back from disk in their own dtypes. weights: by name.

    transformers below 5.18 notes the model's dtype for everything on disk: norms would come back as bfloat16.
    """
    for name, weight in weights.items():
        for index in _indexes(weight):
            for leaf, parameter in weight.named_parameters():
                entry = index.get(f"{name}.{leaf}")
                if entry is not None and "dtype" in entry:
                    entry["dtype"] = str(parameter.dtype).removeprefix("torch.")


def _indexes(weight: Any) -> Iterator[Any]:
    hook = getattr(weight, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        dataset = getattr(getattr(part, "weights_map", None), "dataset", None)
        index = getattr(dataset, "index", None)
        if index is not None:
            yield index
