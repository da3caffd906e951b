"""What the environment says of packed weights in vLLM, which has no options of its own for plug-ins.

TQ_ACTIVATIONS: `int16` (usual where the native kernels are), `int8`, or `float`, equal to the decoded checkpoint.
TQ_RECIPE: what a plain checkpoint becomes with `--quantization turboquant`; the usual one is `tq3`.
TQ_KV: the type of a compressed cache of keys and values, for `kv`.
"""

import os
from dataclasses import dataclass
from typing import get_args

from tq_kernels.backends import selected

from tqcli.errors import InputError
from tqcli.runtime.products import Activations

ACTIVATIONS = "TQ_ACTIVATIONS"
RECIPE = "TQ_RECIPE"
KV = "TQ_KV"
USUAL_RECIPE = "tq3"


@dataclass(frozen=True)
class Settings:
    """What one process goes by."""

    activations: Activations
    recipe: str


def check_settings() -> None:
    """Raise InputError for a word that is not known. Looks at nothing else: other models are to start all the same."""
    _said_activations()


def read_settings() -> Settings:
    """Raises InputError for a word that is not known, and for integers where the native kernels are not there."""
    said = _said_activations()
    has_kernels = selected()[1] is not None
    if said is None:
        said = "int16" if has_kernels else "float"
    elif said != "float" and not has_kernels:
        why = f"that needs the native kernels: {selected()[0].reason}"
        raise InputError(f"{ACTIVATIONS} cannot be `{said}` here", why=why, fix="choose `float`")
    return Settings(said, os.environ.get(RECIPE) or USUAL_RECIPE)


def _said_activations() -> Activations | None:
    said = os.environ.get(ACTIVATIONS)
    if not said:
        return None
    known: dict[str, Activations] = {one: one for one in get_args(Activations)}
    if said not in known:
        choices = " or ".join(f"`{one}`" for one in known)
        raise InputError(f"{ACTIVATIONS} is `{said}`", fix=f"choose {choices}")
    return known[said]
