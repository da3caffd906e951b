"""Packed checkpoints in vLLM: its plug-in, found by entry point. `plugin` is the way in."""
