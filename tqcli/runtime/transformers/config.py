"""`TqConfig`: the `quantization_config` of a packed checkpoint, and the wish to compress a plain one while loading.

Only geometry is stored: bits, group size, seed. How the encoder chose its norms is of no interest to a reader.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers.utils.quantization_config import QuantizationConfigMixin

from tqcli.codec.turboquant import BITS, GROUP_SIZES, MAX_SEED
from tqcli.errors import InputError
from tqcli.formats.native import FORMAT_VERSION, QUANT_METHOD, USUAL_SEED
from tqcli.runtime.transformers.geometry import Geometry

_FIELDS = (
    "bits",
    "group_size",
    "seed",
    "scale",
    "modules_to_not_convert",
    "tensors",
    "format_version",
    "tool",
)
_SCALES = ("norm", "search")


class TqConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Options of TurboQuant compression.

    bits: 2, 3 or 4. group_size: 32, 64, 128 or 256. seed: fixes the rotation. scale: how the encoder chooses each
    group's norm, "norm" as the published encoder does, "search" with less error.
    modules_to_not_convert: path components, such as "router" or "mlp.gate", anywhere in a module's name; None for
    the default: routers, embeddings, head, vision, audio.
    The weights are encoded from the dtype that the model is loaded in. Raises InputError for values out of range.
    """

    def __init__(
        self,
        bits: int = 3,
        group_size: int = 128,
        seed: int = USUAL_SEED,
        scale: Literal["norm", "search"] = "search",
        modules_to_not_convert: Sequence[str] | None = None,
        *,
        tensors: Mapping[str, Mapping[str, int]] | None = None,
        format_version: int | None = FORMAT_VERSION,
        tool: str | None = None,
    ) -> None:
        self.quant_method = QUANT_METHOD
        self.default = _geometry({"bits": bits, "group_size": group_size, "seed": seed}, "quantization_config")
        self.scale = _one_of("scale", scale, _SCALES)
        self.modules_to_not_convert = _names(modules_to_not_convert)
        self.tensors = _overrides(tensors or {}, self.default)
        self.format_version = _version(format_version)
        self.tool = tool

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From a section of config.json; keys that are not ours (of published checkpoints) are left aside."""
        if config_dict.get("quant_method") != QUANT_METHOD:
            raise InputError(f"quantization_config is not of the method `{QUANT_METHOD}`")
        fields = {key: config_dict[key] for key in _FIELDS if key in config_dict}
        config = cls(**{"format_version": None, **fields})
        return (config, kwargs) if return_unused_kwargs else config

    @property
    def bits(self) -> int:
        """Bits a weight, where a tensor has no entry of its own."""
        return self.default.bits

    @property
    def group_size(self) -> int:
        """Weights a group, where a tensor has no entry of its own."""
        return self.default.group_size

    @property
    def is_binding(self) -> bool:
        """Whether the declared bits hold for every tensor. In published checkpoints they are only the common ones."""
        return self.format_version is not None

    def geometry(self, name: str) -> Geometry:
        """What is declared for the tensor `name` (its name on disk)."""
        return self.tensors.get(name, self.default)

    def describe(self, geometries: Mapping[str, Geometry]) -> None:
        """Note the tensors (by names on disk) that differ from the default, now that their sizes were seen."""
        self.tensors = {name: found for name, found in geometries.items() if found != self.default}

    def to_dict(self) -> dict[str, Any]:
        """The section of config.json."""
        from tqcli import __version__

        tensors = {name: geometry.as_dict() for name, geometry in self.tensors.items()}
        return {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            **self.default.as_dict(),
            "tensors": tensors,
            "tool": self.tool or f"tqcli {__version__}",
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: every key counts for a reader."""
        return self.to_dict()


def _geometry(entry: Any, where: str, default: Geometry | None = None) -> Geometry:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} must be an object with bits, group_size and seed")
    values = {**(default.as_dict() if default else {}), **entry}
    bits = _one_of(f"bits of {where}", values.get("bits"), BITS)
    group_size = _one_of(f"group_size of {where}", values.get("group_size"), GROUP_SIZES)
    seed = values.get("seed")
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed of {where} is `{seed}`", why="it must be a number from 0 to 2**32 - 1")
    return Geometry(bits, group_size, seed)


def _overrides(tensors: Mapping[str, Any], default: Geometry) -> dict[str, Geometry]:
    if not isinstance(tensors, Mapping):
        raise InputError("`tensors` of quantization_config must map names to bits, group_size and seed")
    return {name: _geometry(entry, f"`{name}`", default) for name, entry in tensors.items()}


def _one_of(what: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) or value not in allowed:
        known = ", ".join(f"`{choice}`" for choice in allowed)
        raise InputError(f"{what} is `{value}`", why=f"known are {known}")
    return value


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
