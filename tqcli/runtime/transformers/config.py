"""`TqConfig`: the `quantization_config` of a packed checkpoint, and the wish to compress a plain one while loading.

Only what a decoder needs is stored. How the encoder chose its scales is of no interest to a reader.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError
from transformers.utils.quantization_config import QuantizationConfigMixin

from tqcli.errors import InputError
from tqcli.formats.native import FORMAT_VERSION, QUANT_METHOD, USUAL_SEED
from tqcli.formats.native_section import NativeFormat, read_format, section
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform

_ON_LOADING: Mapping[str, type[Tq] | type[Trellis]] = {"tq": Tq, "trellis": Trellis}
# What published checkpoints leave unsaid.
_USUAL = {"bits": 3, "group_size": 128, "seed": USUAL_SEED}
_WHERE = "quantization_config"


class TqConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Options of compression while loading. (What a packed checkpoint says of itself comes by `from_dict`.)

    format: "tq" (TurboQuant) or "trellis". bits: 2, 3 or 4. seed: fixes the rotation.
    Of tq: group_size: 32, 64, 128 (where nothing is said) or 256; scale: how the encoder chooses each group's norm,
    "norm" as the published encoder does, "search" (where nothing is said) with less error.
    Of trellis: rotation: "hadamard" (where nothing is said) or "none"; candidates: how many scales are tried a group,
    1, 3 (where nothing is said), 5 or 7.
    embeddings: 8 or 4 bits for embedding and head, in the format "uniform"; None leaves them as they are.
    modules_to_not_convert: path components, such as "router" or "mlp.gate", anywhere in a module's name; None for
    the default: routers, embeddings, head, vision, audio.
    The weights are encoded from the dtype that the model is loaded in. Raises InputError for values out of range.
    """

    def __init__(
        self,
        bits: int = 3,
        group_size: int | None = None,
        seed: int = USUAL_SEED,
        scale: Literal["norm", "search"] | None = None,
        modules_to_not_convert: Sequence[str] | None = None,
        *,
        format: Literal["tq", "trellis"] = "tq",  # noqa: A002  # as recipes call it
        rotation: Literal["hadamard", "none"] | None = None,
        candidates: int | None = None,
        embeddings: Literal[4, 8] | None = None,
    ) -> None:
        options = {"group_size": group_size, "scale": scale, "rotation": rotation, "candidates": candidates}
        given = {key: value for key, value in options.items() if value is not None}
        self.quant_method = QUANT_METHOD
        self.default: NativeFormat = _format(format, {"bits": bits, "seed": seed, **given})
        self.embeddings = None if embeddings is None else _uniform(embeddings)
        self.modules_to_not_convert = _names(modules_to_not_convert)
        self.tensors: dict[str, NativeFormat] = {}
        self.format_version: int | None = FORMAT_VERSION

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From a section of config.json; keys that are not ours (of published checkpoints) are left aside.

        Raises InputError for a version or a format that is not known, and for values out of range.
        """
        if config_dict.get("quant_method") != QUANT_METHOD:
            raise InputError(f"{_WHERE} is not of the method `{QUANT_METHOD}`")
        config = cls(modules_to_not_convert=config_dict.get("modules_to_not_convert"))
        config.format_version = _version(config_dict.get("format_version"))
        said = dict(config_dict)
        if config.format_version is None:
            # Published checkpoints know one format, and what else they may mean by the word is not ours.
            said.pop("format", None)
        if said.get("format", "tq") == "tq":
            said = {**_USUAL, **said}
        config.default = read_format(said, said, _WHERE)
        config.tensors = _overrides(said)
        return (config, kwargs) if return_unused_kwargs else config

    @property
    def bits(self) -> int:
        """Bits a weight, where a tensor has no entry of its own."""
        return self.default.bits

    @property
    def is_binding(self) -> bool:
        """Whether the declared bits hold for every tensor. In published checkpoints they are only the common ones."""
        return self.format_version is not None

    def format_of(self, name: str) -> NativeFormat:
        """What is declared for the tensor `name` (its name on disk)."""
        return self.tensors.get(name, self.default)

    def describe(self, formats: Mapping[str, NativeFormat]) -> None:
        """Note the tensors (by names on disk) that differ from the default, now that their sizes were seen."""
        self.tensors = {name: found for name, found in formats.items() if found != self.default}

    def to_dict(self) -> dict[str, Any]:
        """The section of config.json."""
        return section(self.default, self.tensors)

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: every key counts for a reader."""
        return self.to_dict()


def _format(name: str, options: Mapping[str, Any]) -> NativeFormat:
    if name not in _ON_LOADING:
        known = ", ".join(f"`{choice}`" for choice in _ON_LOADING)
        raise InputError(f"format is `{name}`", why=f"known for compression while loading are {known}")
    try:
        return _ON_LOADING[name].model_validate(options)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise InputError(f"{key} is `{problem['input']}`", why=f"`{name}`: {problem['msg']}") from error


def _uniform(bits: Any) -> Uniform:
    if type(bits) is not int or bits not in (4, 8):
        raise InputError(f"embeddings is `{bits}`", why="known are `8`, `4` and None")
    return Uniform.model_validate({"bits": bits})


def _overrides(said: Mapping[str, Any]) -> dict[str, NativeFormat]:
    tensors = said.get("tensors") or {}
    if not isinstance(tensors, Mapping):
        raise InputError(f"`tensors` of {_WHERE} must map names to formats")
    found = {}
    for name, entry in tensors.items():
        if not isinstance(entry, Mapping):
            raise InputError(f"`{name}` in `tensors` of {_WHERE} must be an object")
        # An entry that names its format says all of it; others, as those of version 1, say what differs.
        found[name] = read_format(entry if "format" in entry else {**said, **entry}, said, f"`{name}`")
    return found


def _names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise InputError("modules_to_not_convert must be a list of names")
    return tuple(names)


def _version(version: int | None) -> int | None:
    if version is None:
        return None
    if type(version) is not int or version < 1:
        raise InputError(f"format_version is `{version}`", why="it must be a number from 1")
    if version > FORMAT_VERSION:
        raise InputError(
            f"the checkpoint is of format version {version}",
            why=f"this tqcli reads versions up to {FORMAT_VERSION}",
            fix="pip install --upgrade tqcli",
        )
    return version
