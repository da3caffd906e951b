"""The version, where modules below the public API can reach it."""

__version__ = "0.1.0"
