"""Does config.json, by which engines load, say the same of every weight as tq_config.json, by which we check?

Only the native layout lists its tensors in config.json; other engines read names and shapes. Left out: the weights.
"""

from collections.abc import Mapping

from tqcli.checkpoint.reader import Checkpoint
from tqcli.errors import CheckFailed
from tqcli.readers.find import Contents


def check_section(output: Checkpoint, contents: Contents) -> None:
    """Raises CheckFailed naming the weight of which the two files differ."""
    if contents.layout != "native":
        return
    section = output.config.get("quantization_config")
    section = section if isinstance(section, Mapping) else {}
    tensors = section.get("tensors")
    tensors = tensors if isinstance(tensors, Mapping) else {}
    for name, packed in contents.packed.items():
        entry = tensors.get(name)
        said = {**section, **(entry if isinstance(entry, Mapping) else {})}
        wanted = packed.format.config()
        if {key: said.get(key) for key in wanted} != wanted:
            why = f"`tq_config.json` says {packed.format.label}"
            raise CheckFailed(f"`{name}` is not as `config.json` says", why=why)
    for name in tensors:
        if name not in contents.packed:
            raise CheckFailed(f"`config.json` tells of `{name}`", why="there is no such packed tensor")
