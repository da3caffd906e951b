"""Mistral: identical to Llama."""

from tqcli.architectures.llama import ARCHITECTURE as ARCHITECTURE
