"""What the small files of an HLWQ folder say of its weights: read tolerantly, for their keys were never published.

tq_config.json and hlwq_config.json are exact in folders of ours; polar_config.json has an entry a layer;
config.json names the method. Left out: whether the tensors agree.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tq_kernels.types import FloatDtype

from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.shards import read_bounded
from tqcli.checkpoint.storage import Storage
from tqcli.codec.hlwq_tables import TABLES, Table
from tqcli.errors import InputError
from tqcli.formats.hlwq_files import HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME

_DTYPES: Mapping[str, FloatDtype] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Said:
    """Files as parsed; empty where they are not there. record: tq_config.json."""

    record: Mapping[str, Any]
    hlwq: Mapping[str, Any]
    polar: Mapping[str, Any]
    config: Mapping[str, Any]

    def entry(self, name: str) -> Mapping[str, Any]:
        """What tq recorded of one weight."""
        return mapping(mapping(self.record.get("tensors")).get(name))

    def layer(self, module: str) -> Mapping[str, Any]:
        """What polar_config.json, or config.json, says of one module."""
        section = mapping(self.config.get("quantization_config"))
        layers = (mapping(one.get("layers")) for one in (self.polar, section, self.hlwq))
        return next((found for one in layers if (found := mapping(one.get(module)))), {})

    def table(self, name: str) -> Table | None:
        """The table that a weight of ours was made with; None where no file says it. InputError for unknown ones."""
        said = self.entry(name).get("table", self.hlwq.get("table"))
        if said is None:
            return None
        if said not in TABLES:
            why = f"it is {json.dumps(said)[:60]}; known are {', '.join(TABLES)}"
            raise InputError(f"`{name}` has levels of an unknown table", why=why)
        table: Table = said
        return table

    def bits(self, module: str) -> int | None:
        """The width of a module whose sizes do not tell it."""
        found = (self.layer(module).get("bits"), self.polar.get("bits"), self.hlwq.get("bits"))
        return next((bits for bits in found if type(bits) is int), None)

    def block_size(self, module: str) -> Any:
        """Weights a block, where a file says it."""
        sections = (self.layer(module), self.polar, self.hlwq, mapping(self.config.get("quantization_config")))
        return next((one["block_size"] for one in sections if "block_size" in one), None)

    def dtype(self) -> FloatDtype:
        """What the model's weights are, by config.json; BF16, as nearly all are, where it does not say."""
        text = mapping(self.config.get("text_config"))
        said = (one.get(key) for one in (self.config, text) for key in ("dtype", "torch_dtype"))
        return next((_DTYPES[one] for one in said if isinstance(one, str) and one in _DTYPES), "BF16")


def read_said(checkpoint: Checkpoint, record: Mapping[str, Any]) -> Said:
    """Raises InputError where a file is no JSON object."""
    storage = checkpoint.storage
    return Said(record, _object(storage, HLWQ_CONFIG_NAME), _object(storage, POLAR_CONFIG_NAME), checkpoint.config)


def mapping(value: object) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _object(storage: Storage, name: str) -> Mapping[str, Any]:
    return parse_object(read_bounded(storage, name), name) if name in storage.files() else {}
