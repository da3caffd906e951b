"""How HLWQ folders call the tensors of a weight, and which weight they mean.

    M.codes  M.norms  M.ct or M.ct_scaled    polar_engine: M is the name without `.weight`
    K__packed  K__norms  K__meta             bit-packed: K is the full name, its dots kept or replaced by `__`
    K__codes  K__norms                       the same before it was packed

An expert of a fused tensor is K_e0, K_e1 and so on, with `.weight` on either side of that or on none. Left out: what
the tensors hold.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqcli.checkpoint.header import TensorInfo
from tqcli.errors import InputError

_DOTTED = ("codes", "norms", "ct", "ct_scaled")
_UNDERSCORED = ("packed", "codes", "norms", "meta")
_SUFFIX = re.compile(r"(?:\.|__)weight$")
_EXPERT = re.compile(r"_e([0-9]{1,6})$")
# Text models lie under one of these, after how they were loaded.
_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
_TEXT = re.compile(r"(model\.language_model\.|language_model\.model\.|model\.)layers\.")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Bundle:
    """The tensors of one weight. key: what their names begin with; dotted: which of the two ways they are called.

    name: of the original weight, as the folder's rules give it; for an expert, of the tensor of all of them.
    """

    key: str
    name: str
    expert: int | None
    dotted: bool
    parts: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The name without `.weight`, by which polar_config.json knows it."""
        return self.name.removesuffix(".weight")


def bundles(tensors: Mapping[str, TensorInfo]) -> tuple[Bundle, ...]:
    """Every compressed weight, in the order of the files. Raises InputError where a part of one is missing."""
    found: dict[tuple[str, bool], Bundle] = {}
    for tensor in tensors.values():
        for key, part, dotted in _readings(tensor.name):
            if (key, dotted) not in found:
                found[key, dotted] = _dotted(key) if dotted else _underscored(key)
            found[key, dotted].parts[part] = tensor
    return tuple(bundle for bundle in found.values() if _is_weight(bundle))


def _readings(name: str) -> Iterator[tuple[str, str, bool]]:
    for part in _DOTTED:
        if name.endswith("." + part):
            yield name[: -len(part) - 1], part, True
    for part in _UNDERSCORED:
        if name.endswith("__" + part):
            yield name[: -len(part) - 2], part, False


def _dotted(key: str) -> Bundle:
    return Bundle(key, key + ".weight", None, dotted=True)


def _underscored(key: str) -> Bundle:
    bare = _SUFFIX.sub("", key)
    expert = _EXPERT.search(bare)
    if expert:
        bare = _SUFFIX.sub("", bare[: expert.start()])
    # Names of models hold no double underscore of their own.
    name = bare if "." in bare else bare.replace("__", ".")
    return Bundle(key, name if expert else name + ".weight", int(expert[1]) if expert else None, dotted=False)


def _is_weight(bundle: Bundle) -> bool:
    """False for what only looks like a part. Raises InputError for a weight that is not whole."""
    parts = bundle.parts.keys()
    if bundle.dotted:
        # Other models have tensors called `norms`, or `ct`.
        if "codes" not in parts:
            return False
        whole = "norms" in parts and ("ct" in parts) != ("ct_scaled" in parts)
    else:
        whole = parts in ({"packed", "norms", "meta"}, {"codes", "norms"})
    if whole:
        return True
    wanted = "codes, norms and ct or ct_scaled" if bundle.dotted else "packed, norms and meta, or codes and norms"
    raise InputError(
        f"`{bundle.key[:200]}` is not a whole weight", why=f"there are {', '.join(sorted(parts))}; it takes {wanted}"
    )


def original_name(bundle: Bundle, base: Mapping[str, TensorInfo], config: Mapping[str, Any], text: str) -> str:
    """The weight's name in the original: as the base has it, or by rule where there is no base.

    text: what names of the language model begin with in this folder, such as `model.`.
    """
    candidates = list(_candidates(bundle.name))
    if found := next((name for name in candidates if name in base), None):
        return found
    if bundle.name == _HEAD and _is_tied(config):
        # The head is the embedding, and only the embedding is stored in the original.
        tied = [prefix + "embed_tokens.weight" for prefix in (text, *_PREFIXES)]
        return next((name for name in tied if name in base), tied[0])
    return bundle.name


def text_prefix(names: Mapping[str, Any]) -> str:
    """What names of the language model begin with."""
    found = (match[1] for name in names if (match := _TEXT.match(name)))
    return next(found, "model.")


def _candidates(name: str) -> Iterator[str]:
    module = name.removesuffix(".weight")
    for prefix in ("", *_PREFIXES):
        begins = next((one for one in _PREFIXES if module.startswith(one)), None)
        if prefix and begins is None:
            return
        moved = prefix + module.removeprefix(begins or "") if prefix else module
        yield from (moved + ".weight", moved) if name != module else (moved, moved + ".weight")


def _is_tied(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    sections = (config, text if isinstance(text, Mapping) else {})
    return any(section.get("tie_word_embeddings") is True for section in sections)
