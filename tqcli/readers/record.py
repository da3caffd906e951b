"""tq_config.json: what tq recorded of a folder that it wrote. Read here, written by `documents`.

Published TQ3 checkpoints have a file of that name too, with fewer keys. Left out: what the keys mean.
"""

import json
from collections.abc import Mapping
from typing import Any

from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.shards import read_bounded
from tqcli.errors import InputError
from tqcli.formats.native import FORMAT_VERSION, TQ_CONFIG_NAME


def recorded_sums(record: Mapping[str, Any]) -> dict[str, Any]:
    """Stored tensor -> SHA-256, as the record has it; empty for published folders, which have none. Not checked."""
    tensors = record.get("tensors")
    entries = tensors.values() if isinstance(tensors, Mapping) else ()
    sums = (entry.get("sha256") for entry in entries if isinstance(entry, Mapping))
    return {name: digest for known in sums if isinstance(known, Mapping) for name, digest in known.items()}


def read_tq_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """tq_config.json; empty where there is none. Raises InputError if it is damaged or from a newer tq."""
    storage = checkpoint.storage
    if TQ_CONFIG_NAME not in storage.files():
        return {}
    config = parse_object(read_bounded(storage, TQ_CONFIG_NAME), TQ_CONFIG_NAME)
    version = config.get("format_version", 0)
    if type(version) is not int or version > FORMAT_VERSION:
        why = f"its format_version is {json.dumps(version)}, this tq knows {FORMAT_VERSION}"
        raise InputError(f"`{storage.label}` was written by a newer tq", why=why, fix="upgrade tqcli")
    return config
