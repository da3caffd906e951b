"""The names by which a folder of the native format is known: its files, its tensors, its section of config.json.

The format page is docs/native-format.md. Left out: what the tensors hold (`tq.py`, `trellis.py`, `uniform.py`).
"""

from collections.abc import Iterable, Mapping

# A weight B becomes `B.tq_packed` and `B.tq_norms`.
PACKED = ".tq_packed"
NORMS = ".tq_norms"

# Format -> the endings of the two tensors that a weight becomes: its codes, and what goes with each group of them.
PAIRS: Mapping[str, tuple[str, str]] = {
    "tq": (PACKED, NORMS),
    "trellis": (".trellis_codes", ".trellis_meta"),
    "uniform": (".uniform_codes", ".uniform_scales"),
}
SUFFIXES = tuple(suffix for pair in PAIRS.values() for suffix in pair)

TQ_CONFIG_NAME = "tq_config.json"
RECIPE_NAME = "tq_recipe.toml"

# `quant_method` of config.json, and `format` of tq_config.json: what published readers look for.
QUANT_METHOD = "turboquant"
NATIVE_FORMAT = "tq3_native"
# `format` where a weight is in a format that published readers do not know: they must not go on.
EXTENDED_FORMAT = "tq_native"
# The newest version that is read here, and the formats that a reader of version 1 lacks.
FORMAT_VERSION = 2
_SINCE: Mapping[str, int] = {"trellis": 2, "uniform": 2}

# The seed of every published checkpoint; their readers know no other.
USUAL_SEED = 42

# Stock transformers only warns about an unknown quant_method and goes on with random weights. A weights file that
# does not exist makes it stop; our plug-in takes the key away again.
GUARD = "REQUIRES__pip_install_tqcli__then__import_tqcli.safetensors"


def version_of(formats: Iterable[str]) -> int:
    """The version of a folder with weights in these formats: the lowest whose readers know all of them."""
    return max((_SINCE.get(name, 1) for name in formats), default=1)
