"""Which parameters of a plain model are compressed while it is loaded.

By the kind of module, and by path components of its name with our own fixed rule: transformers' rule for
`modules_to_not_convert` has changed its meaning between releases.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tqcli.errors import InputError
from tqcli.runtime.transformers.config import TqConfig
from tqcli.runtime.transformers.experts import PROJECTIONS, is_packable
from tqcli.runtime.transformers.headers import read_headers
from tqcli.runtime.transformers.homes import check_plain
from tqcli.runtime.transformers.names import Names

logger = logging.getLogger(__name__)

DEFAULT_SKIP = (
    "lm_head",
    "embed_tokens",
    "embed_audio",
    "embed_vision",
    "router",
    "gate",
    "shared_expert_gate",
    "vision_tower",
    "vision_model",
    "visual",
    "audio_tower",
    "multi_modal_projector",
)


@dataclass(frozen=True)
class Selection:
    """by_item: the parameters to compress; True where disk has one tensor for each item of the first dimension."""

    by_item: dict[str, bool]


def select(model: Any, files: Any, config: TqConfig) -> Selection:
    """Linear layers and experts, without those that are left out, tied, or made from others by arithmetic on rows."""
    if config.tensors:
        raise InputError("`tensors` describes a packed checkpoint", fix="TqConfig() compresses a plain one")
    skip = DEFAULT_SKIP if config.modules_to_not_convert is None else config.modules_to_not_convert
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    by_item = {name: False for name in _candidates(model) if name not in tied and not is_skipped(name, skip)}
    for name in list(by_item):
        refusal = config.default.refusal(tuple(model.get_parameter(name).shape))
        if refusal:
            logger.warning("`%s` stays as it is: %s", name, refusal)
            del by_item[name]
    names = Names(model)
    tensors = read_headers(str(file) for file in files or [] if str(file).endswith(".safetensors"))
    check_plain(tensors, names)
    for tensor in tensors:
        target = names.target(tensor)
        if target.name not in by_item:
            continue
        if target.keeps_rows:
            by_item[target.name] = target.is_merged
        else:
            logger.warning("`%s` stays as it is: it is made from tensors that cannot be packed", target.name)
            del by_item[target.name]
    return Selection(by_item)


def is_skipped(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern, one or more whole path components, occurs in a dotted name."""
    return any(f".{pattern}." in f".{name}." for pattern in patterns)


def _candidates(model: Any) -> Iterable[str]:
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            yield f"{path}.weight"
        elif is_packable(module):
            yield from (f"{path}.{projection}" for projection in PROJECTIONS)
