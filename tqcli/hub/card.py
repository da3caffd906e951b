"""The model card of a pushed checkpoint: whence it is, its licence, what is inside, how to run it, what was measured.

Every number is of these very bytes: sizes from their headers, measurements from rows that name them by a hash; where
there are none it says so. No time stamp: the same folder gives the same card. Left out: what the source's card says
(`card_source`), making outside text safe (`card_text`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import yaml  # type: ignore[import-untyped]  # huggingface_hub depends on it
from huggingface_hub import ModelCardData

from tqcli.documents import recipe_toml
from tqcli.errors import InputError
from tqcli.formats.native import RECIPE_NAME
from tqcli.hub.card_run import how_to_run
from tqcli.hub.card_source import SourceCard
from tqcli.hub.card_text import code, fence, size, table
from tqcli.hub.results import RESULTS_NAME, Measured, Result
from tqcli.readers.find import Contents
from tqcli.version import __version__

_HUB = "https://huggingface.co"
_MAX_RECIPE = 64 << 10
_LIBRARIES: Mapping[str, str] = {"mlx": "mlx"}


class Row(Protocol):
    """All weights of one role that are stored in one way."""

    @property
    def role(self) -> str:
        """Its name."""

    @property
    def kind(self) -> str:
        """The format or dtype."""

    @property
    def tensors(self) -> int:
        """How many."""

    @property
    def parameters(self) -> int:
        """Weights in them."""

    @property
    def nbytes(self) -> int:
        """Bytes of them."""


class Inventory(Protocol):
    """What a checkpoint holds by its headers (`tqcli.inspection.Summary`)."""

    @property
    def parameters(self) -> int:
        """Number of weights."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk for each weight."""

    @property
    def shards(self) -> int:
        """Files of weights."""

    def by_role(self) -> Sequence[Row]:
        """The largest first."""


@dataclass(frozen=True)
class Facts:
    """What a card tells of. base: Hub id of the original, empty where it is on no Hub. revision: empty for main."""

    repository: str
    revision: str
    base: str
    source: SourceCard
    contents: Contents
    inventory: Inventory
    weights: str
    measured: Measured


def model_card(facts: Facts) -> bytes:
    """The whole README.md. Raises InputError where the folder's record cannot be told."""
    parts = [
        f"---\n{_metadata(facts)}\n---",
        f"# {facts.repository.split('/')[1]}",
        _introduction(facts),
        "## What is inside",
        _inside(facts.inventory),
        "## How to run it",
        how_to_run(facts.contents.layout, facts.repository, facts.revision),
        "## Measured",
        _measured(facts),
        "## How it was made",
        _made(facts),
        "## Licence",
        _licence(facts),
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _metadata(facts: Facts) -> str:
    source = facts.source
    formats = sorted({packed.format.format for packed in facts.contents.packed.values()})
    given: dict[str, Any] = {
        "base_model": facts.base or None,
        "base_model_relation": "quantized" if facts.base else None,
        "license": source.licence,
        "license_name": source.name or None,
        "license_link": _link(facts) or None,
        "language": list(source.languages) or None,
        "library_name": _LIBRARIES.get(facts.contents.layout, "transformers"),
        "pipeline_tag": source.pipeline or None,
        "tags": ["tqcli", *formats],
        **source.gating,
    }
    # Its own `to_yaml` cuts what looks like space from the end, which may be somebody's words.
    text: str = yaml.safe_dump(ModelCardData(**given).to_dict(), sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n")


def _introduction(facts: Facts) -> str:
    inventory = facts.inventory
    original = f"[{facts.base}]({_HUB}/{facts.base})" if facts.base else "a model that is on no Hub"
    return (
        f"Weights of {original}, compressed with tqcli: {size(inventory.nbytes)} in {inventory.shards} "
        f"file{'' if inventory.shards == 1 else 's'}, {inventory.bits_per_weight:.2f} bits per weight, "
        f"{inventory.parameters:,} weights."
    )


def _inside(inventory: Inventory) -> str:
    rows = [
        (code(row.role), code(row.kind), f"{row.tensors:,}", f"{row.parameters:,}", size(row.nbytes))
        for row in inventory.by_role()
    ]
    return table(("role", "stored as", "tensors", "weights", "size"), rows, right=(2, 3, 4))


def _measured(facts: Facts) -> str:
    measured = facts.measured
    parts = [_results(measured.rows) if measured.rows else "Quality and speed of these weights: not measured."]
    if measured.others:
        rows = "1 row" if measured.others == 1 else f"{measured.others} rows"
        parts.append(f"{rows} of `{RESULTS_NAME}` belong to other weights, by their hash, and are not shown.")
    parts.append(f"These weights: {code(facts.weights)}")
    return "\n\n".join(parts)


def _results(rows: Sequence[Result]) -> str:
    cells = [
        (code(row.metric), f"{row.value:.6g} {code(row.unit) if row.unit else ''}".rstrip(), code(row.command),
         code(row.machine), code(", ".join(f"{name} {version}" for name, version in sorted(row.versions.items()))),
         code(row.date))
        for row in rows
    ]  # fmt: skip
    return table(("what", "value", "command", "machine", "versions", "date"), cells, right=(1,))


def _made(facts: Facts) -> str:
    record = facts.contents.record
    source = record.get("source")
    said: Mapping[str, Any] = source if isinstance(source, Mapping) else {}
    rows = [
        ("source", code(str(said.get("model") or facts.base or "not recorded"))),
        ("its revision", code(str(said.get("revision") or "not recorded"))),
        ("its fingerprint", code(str(said.get("fingerprint") or "not recorded"))),
        ("converted by", code(str(record.get("tool") or "a program that left no name"))),
        ("pushed by", code(f"tqcli {__version__}")),
    ]
    recipe = _recipe(record)
    told = f"The recipe, `{RECIPE_NAME}`:\n\n{fence(recipe, 'toml')}" if recipe else "Its recipe is not recorded."
    return f"{table(('what', 'which'), rows)}\n\n{told}"


def _recipe(record: Mapping[str, Any]) -> str:
    recipe = record.get("recipe")
    if not isinstance(recipe, Mapping):
        return ""
    try:
        text = recipe_toml(recipe).decode().strip()
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InputError("the recipe in `tq_config.json` is damaged", why=str(error)[:200]) from error
    if len(text) > _MAX_RECIPE:
        raise InputError("the recipe in `tq_config.json` is too long", why=f"over {_MAX_RECIPE} characters")
    return text


def _licence(facts: Facts) -> str:
    source, base = facts.source, facts.base
    name = f"{code(source.licence)}{f' ({code(source.name)})' if source.name else ''}"
    parts = [f"{name}, as the original's." if base else f"{name}."]
    if link := _link(facts):
        parts.append(f"Its text: {code(link, 500)}")
    if source.gating:
        parts.append(
            "Who fetches the original agrees to terms of access first; they are carried over in the head of this card."
        )
    return "\n\n".join(parts)


def _link(facts: Facts) -> str:
    """A link that is a file's name is one of the base's repository: the file may not be here."""
    link = facts.source.link
    return f"{_HUB}/{facts.base}/blob/main/{link}" if link and "://" not in link and facts.base else link
