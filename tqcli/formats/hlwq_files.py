"""The names by which an HLWQ folder is known: its files, and what config.json calls the method."""

HLWQ_CONFIG_NAME = "hlwq_config.json"
POLAR_CONFIG_NAME = "polar_config.json"

# `quant_method`: what published folders and their readers say, and what ours say where those would decode wrongly.
QUANT_METHOD = "polarengine"
OWN_METHOD = "hlwq"
QUANT_METHODS = (QUANT_METHOD, OWN_METHOD, "polar")

# Stems of the weight files: the compressed weights, as published, and everything else.
STATE = "polar_state"
EXTRA = "model-extra"
