"""Folders of safetensors files: reading, writing, journals, side files. No policy."""
