"""One file per layout of an output folder: its weights' names, its shards, its config.json."""
