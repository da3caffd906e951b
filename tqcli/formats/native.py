"""The names by which a folder of the native format is known: its files, its tensors, its section of config.json.

The format page is docs/native-format.md. Left out: what the tensors hold (`tq.py`).
"""

# A weight B becomes `B.tq_packed` and `B.tq_norms`.
PACKED = ".tq_packed"
NORMS = ".tq_norms"

TQ_CONFIG_NAME = "tq_config.json"
RECIPE_NAME = "tq_recipe.toml"

# `quant_method` of config.json, and `format` of tq_config.json: what published readers look for.
QUANT_METHOD = "turboquant"
NATIVE_FORMAT = "tq3_native"
FORMAT_VERSION = 1

# The seed of every published checkpoint; their readers know no other.
USUAL_SEED = 42

# Stock transformers only warns about an unknown quant_method and goes on with random weights. A weights file that
# does not exist makes it stop; our plug-in takes the key away again.
GUARD = "REQUIRES__pip_install_tqcli__then__import_tqcli.safetensors"
