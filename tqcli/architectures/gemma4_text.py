"""Gemma 4 saved without its vision and audio towers."""

from tqcli.architectures.gemma4 import ARCHITECTURE as ARCHITECTURE
