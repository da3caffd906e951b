"""Turn transformers' warnings about missing, unexpected and mismatched tensors into errors.

transformers fills what is missing with random numbers and says so in a log line. Its own account of what was loaded,
with tied weights and the exceptions of each model taken out, comes together in one method of the model; it is
wrapped on the one model that is being loaded, for as long as that takes.
"""

from collections.abc import Callable, Iterable
from typing import Any

from tqcli.errors import InputError

_METHOD = "_adjust_missing_and_unexpected_keys"
_SHOWN = 3


def watch(model: Any, settle: Callable[[], None], *, allow_unexpected: bool = False) -> None:
    """Have the load of `model` fail if anything is amiss. `settle` runs when all tensors are in place.

    allow_unexpected: leave tensors that the model has no place for to transformers, which logs them.
    """
    if not hasattr(type(model), _METHOD):
        raise InputError(
            "this version of transformers is not supported", fix="install transformers 5.5 or later, below 6"
        )
    original = getattr(model, _METHOD)

    def adjust(loading_info: Any) -> None:
        del model.__dict__[_METHOD]
        original(loading_info)
        mismatched = sorted(str(entry[0]) for entry in loading_info.mismatched_keys)
        # Ours is the better message: with these left in, transformers would replace it.
        loading_info.mismatched_keys = set()
        unexpected = () if allow_unexpected else loading_info.unexpected_keys
        raise_if_any(loading_info.missing_keys, unexpected, mismatched)
        settle()

    # Written past nn.Module, which has no business with it.
    model.__dict__[_METHOD] = adjust


def check_watched(model: Any) -> None:
    """Raise if the load ended without the account that `watch` waits for."""
    if model.__dict__.pop(_METHOD, None) is not None:
        raise InputError(
            "this version of transformers does not report what it loaded",
            fix="install transformers 5.5 or later, below 6",
        )


def raise_if_any(missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]) -> None:
    """Raise InputError that names the tensors, if there are any."""
    problems = [
        ("missing from the checkpoint", sorted(missing)),
        ("of a shape that the model does not have", sorted(mismatched)),
        ("in the checkpoint, but not in the model", sorted(unexpected)),
    ]
    found = [f"{_some(names)}: {problem}" for problem, names in problems if names]
    if found:
        raise InputError(
            f"{found[0]}",
            why="; ".join(found[1:]),
            fix="fetch the checkpoint again, or load it with its own model class",
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
