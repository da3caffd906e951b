"""What the formats have in common: options that are recipe keys, and, of those of compressed-tensors, how it describes
a weight. Left out: what a weight becomes.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from tqcli.checkpoint.stored import Shape


class FormatOptions(BaseModel):
    """Options of a format: frozen, so that equal ones are one format, and refused where they are unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def block_rows(self) -> int:
        """Every row stands alone."""
        return 1

    def refusal(self, shape: Shape) -> str:
        """Nothing: any row can be stored, padded or cut short where groups do not divide it."""
        del shape
        return ""


def linear_refusal(shape: Shape, group: int, name: str) -> str:
    """Why a weight is not stored in groups of columns as the weight of one linear layer; empty where it can be."""
    if len(shape) != 2:
        return f"it has {len(shape)} dimensions, and {name} weights have 2"
    return f"{shape[1]} columns are no multiple of {group}" if shape[1] % group else ""


def quantization_arguments(**given: Any) -> dict[str, Any]:
    """QuantizationArgs of compressed-tensors 0.19, with all that it writes even where it is not set."""
    unset = dict.fromkeys(["actorder", "block_structure", "group_size", "observer", "scale_dtype", "zp_dtype"])
    return {**unset, "symmetric": True, "dynamic": False, "observer_kwargs": {}, **given}


def weights_only(stored_as: str, **given: Any) -> dict[str, Any]:
    """The entry of `config_groups` of a format, without a word on activations. stored_as: its `format`."""
    return {
        "targets": ["Linear"],
        "weights": quantization_arguments(**given),
        "input_activations": None,
        "output_activations": None,
        "format": stored_as,
    }
