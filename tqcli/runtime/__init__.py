"""Compressed models in memory."""
