"""Bits where they matter: which weights of a model get how many, so that the folder has a given size."""
