"""What the packed tensors of a published checkpoint stand for. Their files tell rows, but not columns, nor experts.

transformers' model of the same configuration tells it, without weights, and by its own rules for names. Left out: our
own folders, which say it themselves (`contents`).
"""

from collections.abc import Iterable
from typing import Any

import torch
import transformers

from tqcli.errors import InputError
from tqcli.runtime.headers import Pair
from tqcli.runtime.transformers.names import UNSUFFIXED, Names
from tqcli.runtime.vllm.contents import Named


def shapes_in_model(config: Any, pairs: Iterable[Pair]) -> dict[str, Named]:
    """config: transformers' own, of the checkpoint. Raises InputError for tensors that the model has no place for."""
    names = Names(_empty_model(config))
    return {pair.name: _named(pair, names) for pair in pairs}


def _named(pair: Pair, names: Names) -> Named:
    suffixed = pair.name + ".weight"
    candidates = (pair.name, suffixed) if pair.format in UNSUFFIXED else (pair.name,)
    for name in candidates:
        target = names.target(name)
        if target.name not in names:
            continue
        shape = names.shape(target.name)
        # Experts that lie one by one on disk are in one piece in this model; what they agree on is the columns.
        return Named(name, (pair.rows, shape[-1]) if target.operations else shape)
    raise InputError(f"packed tensor `{pair.name}` has no place in the model", why="it has no such parameter")


def _empty_model(config: Any) -> Any:
    name = (getattr(config, "architectures", None) or [""])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        why = f"transformers has no `{name}`, which would tell the shapes of its weights"
        raise InputError("this published checkpoint cannot be read", why=why, fix="convert it again with tq")
    with torch.device("meta"):
        return kind(config)
