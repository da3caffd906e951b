"""Is a folder already what a plan would write? Then the same command has nothing left to write.

The documents are functions of the plan and of the stored tensors' hashes: with the hashes that the folder records, the
plan must give the folder's documents again, byte for byte. Left out: whether the tensors still have those hashes,
which verification tells.
"""

from pathlib import Path

from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.shards import MAX_JSON_BYTES
from tqcli.checkpoint.sidecars import sidecars
from tqcli.documents import all_documents
from tqcli.errors import InputError
from tqcli.formats.native import TQ_CONFIG_NAME
from tqcli.plan import Plan
from tqcli.readers.record import recorded_sums


def is_finished(plan: Plan, folder: Path) -> bool:
    """Whether a conversion by this plan ended here. A folder that cannot be read was not finished by it."""
    copied, _ = sidecars(plan.source.storage)
    try:
        recorded = parse_object(_read(folder, TQ_CONFIG_NAME), TQ_CONFIG_NAME)
        documents = all_documents(plan, recorded_sums(recorded), copied)
        return all(_read(folder, name) == content for name, content in documents.items())
    except (OSError, InputError, KeyError):
        return False


def _read(folder: Path, name: str) -> bytes:
    with (folder / name).open("rb") as file:
        return file.read(MAX_JSON_BYTES)
