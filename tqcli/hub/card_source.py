"""What the model card of a checkpoint's source says of its licence and of access to it, to be carried over.

`tq convert` copies the source's card beside the weights; where it is not there, or says nothing, the base model's is
asked for. Everything in it is a stranger's: parsed by PyYAML's safe loader, bounded, and of the keys only those that
are known. Which model is the base is told here too. Left out: writing a card (`card`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped]  # huggingface_hub depends on it

from tqcli.checkpoint.storage import Storage
from tqcli.errors import InputError
from tqcli.hub.fetch import is_hub_id
from tqcli.hub.remote import open_repository

CARD_NAME = "README.md"
# What a user says of an original that is on no Hub.
NO_BASE = "none"

_MAX_HEAD_BYTES = 64 << 10
_MAX_TEXT = 500
_MAX_REVISION = 100
_MAX_GATING = 16 << 10
_MAX_DEPTH = 4
_GATING = "extra_gated_"
_LICENCE_FIX = "`--license ID` names it, such as `apache-2.0`; it is the source's, not yours to choose"


@dataclass(frozen=True)
class SourceCard:
    """licence: an identifier, empty where none is known. name, link: of a licence that has no identifier of its own.

    languages, pipeline: as the Hub lists models. gating: `extra_gated_*`, what readers are asked to agree to.
    """

    licence: str = ""
    name: str = ""
    link: str = ""
    languages: tuple[str, ...] = ()
    pipeline: str = ""
    gating: Mapping[str, Any] = field(default_factory=dict)


def base_of(record: Mapping[str, Any], said: str | None, repository: str) -> str:
    """The Hub id of the original: the one that the user says, else the one that tq_config.json records.

    said: None, or `none` for an original that is on no Hub, which is the empty string then. Raises InputError where it
    is not known, and where it is the repository that is pushed to.
    """
    if said == NO_BASE:
        return ""
    base = said or str(record.get("original_model") or "")
    if not is_hub_id(base):
        what = f"`{base[:120]}` is no model on the Hub" if base else "the base model is not known"
        raise InputError(what, why="the card names the original", fix="`--base owner/name`, or `--base none`")
    if base.lower() == repository.lower():
        raise InputError(f"`{base}` is the base model itself", fix="push to a repository of its own")
    return base


def revision_of(record: Mapping[str, Any], base: str) -> str | None:
    """The base's commit that the checkpoint was made from, where it is recorded."""
    source = record.get("source")
    if not isinstance(source, Mapping) or source.get("model") != base:
        return None
    revision = source.get("revision")
    return revision if isinstance(revision, str) and len(revision) <= _MAX_REVISION else None


def source_card(storage: Storage, base: str, revision: str | None) -> SourceCard:
    """The card in the folder; where that tells no licence and there is a base, the base's, from the Hub.

    base: a Hub id or empty. Raises InputError for a card that cannot be read, MachineError where the Hub cannot be.
    """
    own = read_card(storage)
    if own.licence or not base:
        return own
    try:
        return read_card(open_repository(base, revision))
    except InputError:
        # Gone, private or gated: then it tells nothing, and the caller asks for the licence.
        return own


def with_licence(card: SourceCard, said: str | None) -> SourceCard:
    """The card with the licence that the user names, where it has none.

    Raises InputError where there is none at all, where the two contradict each other, and for one that is no name.
    """
    if said is None and not card.licence:
        raise InputError("the licence of these weights is not known", why="no source's card says it", fix=_LICENCE_FIX)
    if said is None or (said and said == card.licence):
        return card
    if not _is_identifier(said):
        raise InputError(f"`{said[:80]}` is no licence identifier", fix="such as `apache-2.0`, `gemma` or `other`")
    if card.licence:
        what = f"the source's card says that the licence is `{card.licence}`"
        raise InputError(what, why=f"`--license` says `{said}`", fix="leave `--license` out")
    return SourceCard(said, "", "", card.languages, card.pipeline, card.gating)


def read_card(storage: Storage) -> SourceCard:
    """What the card of a folder or repository says; empty where it has none. Raises InputError for a damaged one."""
    said = _front_matter(storage)
    licence = said.get("license")
    if isinstance(licence, list) and len(licence) == 1:
        licence = licence[0]
    if licence is not None and not (isinstance(licence, str) and _is_identifier(licence)):
        raise InputError(f"the licence in `{CARD_NAME}` is no identifier", why=repr(licence)[:80])
    languages = said.get("language")
    listed = languages if isinstance(languages, list) else [languages]
    return SourceCard(
        licence=licence or "",
        name=_text(said.get("license_name")),
        link=_text(said.get("license_link")),
        languages=tuple(one for one in listed[:100] if isinstance(one, str) and _is_identifier(one)),
        pipeline=_identifier(said.get("pipeline_tag")),
        gating=_gating(said),
    )


def _front_matter(storage: Storage) -> Mapping[str, Any]:
    size = min(storage.files().get(CARD_NAME, 0), _MAX_HEAD_BYTES)
    text = storage.read(CARD_NAME, 0, size).decode(errors="replace") if size else ""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if end is None:
        raise InputError(f"the head of `{CARD_NAME}` has no end", why=f"no second `---` in {_MAX_HEAD_BYTES} bytes")
    try:
        said = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise InputError(f"the head of `{CARD_NAME}` is not valid YAML", why=why) from error
    return said if isinstance(said, dict) else {}


def _gating(said: Mapping[Any, Any]) -> dict[str, Any]:
    found = {key: value for key, value in said.items() if isinstance(key, str) and key.startswith(_GATING)}
    if sum(len(key) + _weight(value, 0) for key, value in found.items()) > _MAX_GATING:
        raise InputError(f"the terms of access in `{CARD_NAME}` are too long", why=f"over {_MAX_GATING} characters")
    return found


def _weight(value: object, depth: int) -> int:
    """Characters that a value takes. Aliases in YAML make small files large, so it stops when that is known."""
    if depth > _MAX_DEPTH:
        return _MAX_GATING + 1
    if isinstance(value, str):
        return len(value) + 1
    if isinstance(value, bool | int | float) or value is None:
        return 8
    if not isinstance(value, dict | list):
        return _MAX_GATING + 1
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    total = 1
    for part in parts:
        total += _weight(part, depth + 1)
        if total > _MAX_GATING:
            break
    return total


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in value)[:_MAX_TEXT].strip()


def _identifier(value: object) -> str:
    return value if isinstance(value, str) and _is_identifier(value) else ""


def _is_identifier(value: str) -> bool:
    return 0 < len(value) <= 64 and value.isascii() and all(c.isalnum() or c in ".-+_" for c in value)
