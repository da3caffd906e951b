"""What an architecture says about a checkpoint: the role and the layer of each tensor, from its name alone.

One file per `model_type` in this folder defines `ARCHITECTURE`; `find` imports it by that name. Roles are
facts about the model. What is done to a role is the recipe's business.
"""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tqcli.errors import InputError

Role = Literal[
    "embed",
    "head",
    "router",
    "norm",
    "vision",
    "audio",
    "q",
    "k",
    "v",
    "o",
    "gate",
    "up",
    "down",
    "expert_gate",
    "expert_up",
    "expert_down",
    "other",
]

# Engines run the members of a group as one matrix, so within a block they must be stored alike.
FUSED: tuple[tuple[Role, ...], ...] = (("q", "k", "v"), ("gate", "up"), ("expert_gate", "expert_up"))

MAX_LAYERS = 10_000

# Text models lie under three prefixes: `model.` alone, `model.language_model.` in multimodal checkpoints,
# `language_model.model.` in older ones.
TEXT_PATTERN = r"(?:model\.language_model\.|language_model\.model\.|model\.)"
LAYER_PATTERN = TEXT_PATTERN + r"layers\.(?P<layer>[0-9]{1,6})\."

_MODEL_TYPE = re.compile(r"[a-z0-9_]{1,64}")
_NOT_A_MODEL = ("base", "rules")
_IN_LAYER = re.compile(LAYER_PATTERN)
_LEAF = re.compile(r"(?:\.linear)?\.(?:weight|bias)$")
_EXPERT = re.compile(r"(.*\.experts)\.[0-9]+(?:\.|$)")


@dataclass(frozen=True)
class TensorRole:
    """What one tensor does.

    roles: one, or several where the source stores a fused matrix, in the order of its rows.
    layer: index of the decoder layer; None outside of them and in the vision and audio towers.
    block: the module within which engines fuse projections; all experts of a layer share one.
    expert: index, where each expert has a tensor of its own.
    """

    roles: tuple[Role, ...]
    layer: int | None
    block: str
    expert: int | None


@dataclass(frozen=True)
class Rule:
    """Names that match `pattern` as a whole have `roles`; its groups `layer` and `expert` are indexes."""

    pattern: str
    roles: tuple[Role, ...]
    compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compiled", re.compile(self.pattern))


@dataclass(frozen=True)
class Architecture:
    """The rules of one or several model types; the first match wins, a name that none matches is `other`.

    stacked_experts: checkpoints hold all experts of a layer in one tensor, gate and up one above the other.
    """

    rules: tuple[Rule, ...]
    fused: tuple[tuple[Role, ...], ...] = FUSED
    stacked_experts: bool = False

    def classify(self, name: str) -> TensorRole:
        """The role of the tensor called `name`. Never fails: what is not known is `other`."""
        for rule in self.rules:
            match = rule.compiled.fullmatch(name)
            if match:
                groups = match.groupdict()
                return TensorRole(rule.roles, _index(groups, "layer"), _block(name), _index(groups, "expert"))
        in_layer = _IN_LAYER.match(name)
        return TensorRole(("other",), int(in_layer["layer"]) if in_layer else None, _block(name), None)

    def layers(self, config: Mapping[str, Any]) -> int:
        """How many decoder layers the language model has. Raises InputError when config.json does not say."""
        text = config.get("text_config")
        text = config if text is None else text
        count = text.get("num_hidden_layers") if isinstance(text, Mapping) else None
        if type(count) is not int or not 1 <= count <= MAX_LAYERS:
            raise InputError(
                "`config.json` does not say how many layers the model has",
                why=f"`num_hidden_layers` should be between 1 and {MAX_LAYERS}, it is `{str(count)[:40]}`",
            )
        return count


def find(config: Mapping[str, Any]) -> Architecture:
    """The architecture of the model that `config` (config.json) describes. InputError when it is unknown."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        raise InputError("`config.json` has no usable `model_type`", why=f"it is `{str(model_type)[:80]}`")
    if model_type not in known():
        near = difflib.get_close_matches(model_type, known(), n=1)
        raise InputError(
            f"unknown architecture `{model_type}`" + (f"; did you mean `{near[0]}`?" if near else ""),
            why="without it nobody knows what each tensor does",
            fix="known are " + ", ".join(f"`{name}`" for name in known()),
        )
    architecture = importlib.import_module(f"tqcli.architectures.{model_type}").ARCHITECTURE
    if not isinstance(architecture, Architecture):
        raise TypeError(f"tqcli.architectures.{model_type}.ARCHITECTURE is not an Architecture")
    return architecture


@cache
def known() -> tuple[str, ...]:
    """The model types that have a file in this folder, sorted."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return tuple(sorted(module.name for module in modules if module.name not in _NOT_A_MODEL))


def _index(groups: Mapping[str, str | None], group: str) -> int | None:
    digits = groups.get(group)
    return None if digits is None else int(digits)


def _block(name: str) -> str:
    experts = _EXPERT.match(name)
    if experts:
        return experts[1]
    return _LEAF.sub("", name).rpartition(".")[0]
