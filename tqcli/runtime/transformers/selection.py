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
from tqcli.formats.native_section import NativeFormat
from tqcli.runtime.headers import read_headers
from tqcli.runtime.transformers.config import TqConfig
from tqcli.runtime.transformers.experts import PROJECTIONS, is_packable
from tqcli.runtime.transformers.homes import check_plain
from tqcli.runtime.transformers.names import Names
from tqcli.runtime.transformers.swap import Kind, kind_of

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


@dataclass
class Chosen:
    """A parameter to compress. by_item: whether disk has one tensor for each item of the first dimension."""

    stored_as: NativeFormat
    by_item: bool = False


def select(model: Any, files: Any, config: TqConfig) -> dict[str, Chosen]:
    """The parameters to compress, by name: linear layers and experts, and embedding and head where the config says so.

    Left out are those that it leaves out, that are tied, or are made from others by arithmetic on rows.
    """
    if config.tensors:
        raise InputError("`tensors` describes a packed checkpoint", fix="TqConfig() compresses a plain one")
    chosen = _fitting(model, {**_linears_and_experts(model, config), **_embeddings(model, config)})
    copies = {copy: source for copy, source in model.all_tied_weights_keys.items() if source in chosen}
    names = Names(model)
    tensors = read_headers(str(file) for file in files or [] if str(file).endswith(".safetensors"))
    check_plain(tensors, names)
    for tensor in tensors:
        target = names.target(tensor)
        if target.name in copies and copies[target.name] in chosen:
            _leave(chosen, copies[target.name], f"`{tensor}`, which is tied to it, is there too")
        if target.name not in chosen:
            continue
        if target.keeps_rows:
            chosen[target.name].by_item = target.is_merged
        else:
            _leave(chosen, target.name, "it is made from tensors that cannot be packed")
    return chosen


def _linears_and_experts(model: Any, config: TqConfig) -> dict[str, Chosen]:
    skip = DEFAULT_SKIP if config.modules_to_not_convert is None else config.modules_to_not_convert
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    names = (name for name in _candidates(model) if name not in tied and not is_skipped(name, skip))
    return {name: Chosen(config.default) for name in names}


def _embeddings(model: Any, config: TqConfig) -> dict[str, Chosen]:
    """The table and the head, but for one that is tied to the other or that the caller's own list names."""
    if config.embeddings is None:
        return {}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [f"{path}.weight" for path, module in model.named_modules() if any(module is end for end in ends)]
    return {
        name: Chosen(config.embeddings)
        for name in names
        if name not in model.all_tied_weights_keys
        and kind_of(model, name) in (Kind.EMBEDDING, Kind.LINEAR)
        and not is_skipped(name, config.modules_to_not_convert or ())
    }


def _fitting(model: Any, chosen: dict[str, Chosen]) -> dict[str, Chosen]:
    for name, choice in list(chosen.items()):
        refusal = choice.stored_as.refusal(tuple(model.get_parameter(name).shape))
        if refusal:
            _leave(chosen, name, refusal)
    return chosen


def _leave(chosen: dict[str, Chosen], name: str, why: str) -> None:
    logger.warning("`%s` stays as it is: %s", name, why)
    del chosen[name]


def is_skipped(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern, one or more whole path components, occurs in a dotted name."""
    return any(f".{pattern}." in f".{name}." for pattern in patterns)


def _candidates(model: Any) -> Iterable[str]:
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            yield f"{path}.weight"
        elif is_packable(module):
            yield from (f"{path}.{projection}" for projection in PROJECTIONS)
