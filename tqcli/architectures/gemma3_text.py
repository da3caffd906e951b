"""Gemma 3 without vision: Llama with four norms a layer and norms on the heads of q and k."""

from tqcli.architectures.llama import ARCHITECTURE as ARCHITECTURE
