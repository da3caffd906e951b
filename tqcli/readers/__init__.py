"""One file per kind of compressed folder: which of its tensors make up which weight, and in which format."""
