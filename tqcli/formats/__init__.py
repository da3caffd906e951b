"""One file per stored format: what a weight becomes on disk, and back."""
