"""One decision: what becomes of one weight, and why. From its name, role, shape and dtype alone.

Left out: what weights have to agree on (`agreement`).
"""

from dataclasses import dataclass, replace

from tqcli.architectures.base import Role, TensorRole
from tqcli.checkpoint.stored import Stored
from tqcli.formats.base import Format
from tqcli.recipe import Keep, Recipe
from tqcli.selection import first_fit
from tqcli.weights import Weight

_ENCODABLE = ("BF16", "F16", "F32")
_TOO_SMALL = "packing would not shrink it"
_EXPERT_ROLES: frozenset[Role] = frozenset(("expert_gate", "expert_up", "expert_down"))


@dataclass(frozen=True)
class Decision:
    """What one weight becomes. `format` is None where it is kept.

    refused: kept because the format cannot hold it. by_override: an override chose the format, not the default.
    sharing: the weights, this one among them, whose greatest magnitude the format must know.
    """

    weight: Weight
    format: Format | None
    stored: tuple[Stored, ...]
    why: str
    refused: bool = False
    by_override: bool = False
    sharing: tuple[Weight, ...] = ()

    @property
    def role(self) -> TensorRole:
        """What the weight does."""
        return self.weight.role

    @property
    def label(self) -> str:
        """What it becomes, for tables."""
        return self.format.label if self.format else self.stored[0].dtype.lower()

    @property
    def nbytes(self) -> int:
        """Bytes of data on disk."""
        return sum(stored.nbytes for stored in self.stored)


def decide(weight: Weight, recipe: Recipe, layers: int) -> Decision:
    """The recipe's word on a weight of a model with so many layers."""
    stored_as, why = _choose(weight, recipe, layers)
    if isinstance(stored_as, Keep):
        return kept(weight, recipe, why)
    if refusal := stored_as.refusal(weight.shape) or _cut_blocks(weight, stored_as):
        return replace(kept(weight, recipe, refusal), refused=True)
    stored = stored_as.stored(weight.name, weight.shape, weight.dtype)
    if sum(part.nbytes for part in stored) >= weight.nbytes:
        return replace(kept(weight, recipe, _TOO_SMALL), refused=True)
    return Decision(weight, stored_as, stored, why, by_override=first_fit(recipe, weight, layers) is not None)


def _cut_blocks(weight: Weight, stored_as: Format) -> str:
    """Why a weight that is gathered from several places cannot be cut into blocks of rows, or nothing."""
    block = stored_as.block_rows
    return "its blocks would cross tensors" if any(run.rows % block for run in weight.runs[:-1]) else ""


def _choose(weight: Weight, recipe: Recipe, layers: int) -> tuple[Format | Keep, str]:
    """The first override that fits, else the default. Protection yields to overrides that name a role or a tensor."""
    override = first_fit(recipe, weight, layers)
    named = override is not None and bool(override.roles or override.tensors)
    if not named and set(weight.role.roles) & set(recipe.protect):
        return Keep(), "protected"
    if reason := _no_matrix(weight, named=bool(override and override.tensors)):
        return Keep(), reason
    return (override.stored_as, override.why) if override else (recipe.stored_as, "")


def _no_matrix(weight: Weight, *, named: bool) -> str:
    """Why a weight cannot be packed, or nothing. `named`: an override selects it by its own name."""
    if weight.role.roles == ("norm",):
        return "not a weight matrix"
    if weight.role.roles == ("other",) and not named:
        return "no known role"
    experts = len(weight.shape) == 3 and bool(_EXPERT_ROLES & set(weight.role.roles))
    if len(weight.shape) != 2 and not experts:
        return "not a weight matrix"
    if weight.parameters == 0:
        return "empty"
    if weight.dtype not in _ENCODABLE:
        return f"{weight.dtype.lower()} is not encoded"
    return ""


def kept(weight: Weight, recipe: Recipe, why: str) -> Decision:
    """The source's values, in its dtype or, where the recipe says so, in float16."""
    halved = recipe.keep_dtype == "float16" and weight.dtype in _ENCODABLE
    dtype = "F16" if halved else weight.dtype
    return Decision(weight, None, (Stored(weight.name, dtype, weight.shape),), why)
