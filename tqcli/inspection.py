"""What a checkpoint holds, from its headers alone: totals, a row a role, single tensors, a comparison with another.

Works on any safetensors checkpoint, ours, published or plain. Left out: reading weights (that is `verify`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqcli.architectures.base import Architecture, find
from tqcli.checkpoint.journal import JOURNAL_NAME
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.storage import LocalFolder, Storage
from tqcli.errors import InputError
from tqcli.layouts import hlwq, hlwq_proof
from tqcli.layouts.originals import original_weights
from tqcli.packed import PackedTensor
from tqcli.readers.find import Contents, read
from tqcli.selection import matches

_WRITERS = {"native": "a published TQ3 writer"}


@dataclass(frozen=True)
class Item:
    """One weight as a reader sees it: a plain tensor, or a packed pair under its original name."""

    name: str
    role: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    parameters: int
    file: str


@dataclass(frozen=True)
class RoleRow:
    """All weights of one role stored in one way."""

    role: str
    kind: str
    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Summary:
    """A whole checkpoint. `tool` and `recipe` are what the folder says of its making, where it says so.

    notes: what a person should know of the kind of folder, a line each.
    """

    model: str
    revision: str | None
    model_type: str
    known_architecture: bool
    shards: int
    items: tuple[Item, ...]
    tool: str
    original_model: str
    recipe: Mapping[str, Any] | None
    ignored_files: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights, as the original counts them."""
        return sum(item.parameters for item in self.items)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(item.nbytes for item in self.items)

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk for each weight."""
        return self.nbytes * 8 / self.parameters if self.parameters else 0.0

    def by_role(self) -> list[RoleRow]:
        """A row a role and way of storing, the largest first."""
        groups: dict[tuple[str, str], list[Item]] = {}
        for item in self.items:
            groups.setdefault((item.role, item.kind), []).append(item)
        rows = [
            RoleRow(role, kind, len(found), sum(i.parameters for i in found), sum(i.nbytes for i in found))
            for (role, kind), found in groups.items()
        ]
        return sorted(rows, key=lambda row: -row.nbytes)

    def select(self, pattern: str) -> list[Item]:
        """The weights whose name fits a glob or `re:` pattern. Raises InputError if there are none."""
        try:
            found = [item for item in self.items if matches(item.name, pattern)]
        except re.error as error:
            raise InputError(f"`{pattern}` is not a regular expression", why=str(error)) from error
        if not found:
            raise InputError(f"pattern `{pattern}` matches no tensor", fix="--names lists them")
        return found


@dataclass(frozen=True)
class Difference:
    """Two checkpoints, weight by weight, under original names."""

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    changed: tuple[tuple[str, str, str], ...]
    same: int


def summarize(checkpoint: Checkpoint) -> Summary:
    """Read what the headers and the small files say. Raises InputError where they contradict each other."""
    contents = read(checkpoint)
    config = contents.record
    architecture = _architecture(checkpoint)
    recipe = config.get("recipe")
    return Summary(
        model=checkpoint.storage.label,
        revision=checkpoint.storage.revision,
        model_type=str(checkpoint.config.get("model_type", "unknown")),
        known_architecture=architecture is not None,
        shards=len(checkpoint.shards),
        items=_items(checkpoint, contents, architecture),
        tool=_tool(contents),
        original_model=str(config.get("original_model", "")),
        recipe=recipe if isinstance(recipe, Mapping) else None,
        ignored_files=checkpoint.ignored_files,
        notes=contents.notes,
    )


def to_verify(checkpoint: Checkpoint) -> Checkpoint:
    """A folder as its layout arranges sources, where it is not so yet."""
    if read(checkpoint).layout != "hlwq":
        return checkpoint
    return hlwq.in_slices(checkpoint, find(checkpoint.config))


def prove_levels(checkpoint: Checkpoint, source: Checkpoint) -> tuple[hlwq_proof.Proof, ...]:
    """Which levels an HLWQ folder was made with, by the original's weights; nothing for other folders.

    Raises CheckFailed where they are known ones, and not those that the folder claims. Where they are none that are
    known the weights may be damaged, or others than the original's: verification tells more of that.
    """
    contents = read(checkpoint)
    if contents.layout != "hlwq":
        return ()
    originals = original_weights(source, find(source.config))
    arranged = hlwq.LAYOUT.arrange(originals, source).weights
    proofs = hlwq_proof.prove(checkpoint, contents.packed, source, arranged)
    for proof in proofs:
        if proof.fitting:
            proof.check()
    return proofs


def is_unfinished(storage: Storage) -> bool:
    """Whether a conversion into this folder was begun and not verified."""
    return isinstance(storage, LocalFolder) and (storage.path / JOURNAL_NAME).exists()


def compare(first: Summary, second: Summary) -> Difference:
    """What one has and the other has not, and what is stored otherwise."""
    left = {item.name: item for item in first.items}
    right = {item.name: item for item in second.items}
    both = [name for name in left if name in right]
    changed = tuple(
        (name, _form(left[name]), _form(right[name])) for name in both if _form(left[name]) != _form(right[name])
    )
    return Difference(
        only_first=tuple(name for name in left if name not in right),
        only_second=tuple(name for name in right if name not in left),
        changed=changed,
        same=len(both) - len(changed),
    )


def _form(item: Item) -> str:
    return f"{item.kind} {list(item.shape)}"


def _architecture(checkpoint: Checkpoint) -> Architecture | None:
    try:
        return find(checkpoint.config)
    except InputError:
        return None


def _items(checkpoint: Checkpoint, contents: Contents, architecture: Architecture | None) -> tuple[Item, ...]:
    owners = {tensor.name: packed for packed in contents.packed.values() for tensor in packed.tensors}
    items: dict[str, Item] = {}
    for tensor in checkpoint.tensors.values():
        owner = owners.get(tensor.name)
        name = owner.name if owner else tensor.name
        role = _role(name, architecture, packed=owner is not None)
        if owner is None:
            kind = tensor.dtype.lower()
            items[name] = Item(name, role, kind, tensor.shape, tensor.nbytes, tensor.parameters, tensor.file)
        elif name not in items:
            items[name] = _packed_item(owner, role)
    return tuple(items.values())


def _packed_item(packed: PackedTensor, role: str) -> Item:
    shape = packed.shape or (packed.rows, packed.columns)
    file = packed.parts[0].tensor.file
    return Item(packed.name, role, packed.format.label, shape, packed.nbytes, packed.rows * packed.columns, file)


def _role(name: str, architecture: Architecture | None, *, packed: bool) -> str:
    if architecture is None:
        return "-"
    role = architecture.classify(name)
    if packed and role.roles == ("other",):
        # One published generation left `.weight` out of the names of packed tensors.
        role = architecture.classify(name + ".weight")
    return "+".join(role.roles)


def _tool(contents: Contents) -> str:
    if "tool" in contents.record:
        return str(contents.record["tool"])
    return _WRITERS.get(contents.layout, "") if contents.packed else ""
