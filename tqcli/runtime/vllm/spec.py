"""`Spec`: what codes and scales mean, as text, because vLLM's compiled graphs take tensors, numbers and text only."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from pydantic import TypeAdapter
from torch import Tensor

from tqcli.formats.native_section import NativeFormat

_FORMATS: TypeAdapter[NativeFormat] = TypeAdapter(NativeFormat)
_SEPARATOR = ";"


@dataclass(frozen=True)
class Spec:
    """columns: that are packed. lead: how many of them come before the `width` that activations have."""

    stored_as: NativeFormat
    columns: int
    lead: int
    width: int

    @property
    def text(self) -> str:
        """To be read back by `read_spec`."""
        numbers = _SEPARATOR.join(str(number) for number in (self.columns, self.lead, self.width))
        return f"{numbers}{_SEPARATOR}{self.stored_as.model_dump_json()}"


@lru_cache(maxsize=4096)
def read_spec(text: str) -> Spec:
    """The spec of a text made by `Spec.text`."""
    columns, lead, width, stored_as = text.split(_SEPARATOR, 3)
    return Spec(_FORMATS.validate_json(stored_as), int(columns), int(lead), int(width))


@dataclass(frozen=True)
class Packed:
    """Codes and scales of whole rows, and what they mean."""

    codes: Tensor
    scales: Tensor
    spec: Spec

    @property
    def rows(self) -> int:
        """Of the weight."""
        return len(self.scales)


def joined(first: Packed, second: Packed) -> Packed | None:
    """One below the other; None where they do not mean the same."""
    if first.spec != second.spec:
        return None
    codes, scales = (torch.cat(pair) for pair in ((first.codes, second.codes), (first.scales, second.scales)))
    return Packed(codes, scales, first.spec)
