"""A compressed key-value cache for transformers: rotated, quantised to 2 to 8 bits, packed, append-only."""
