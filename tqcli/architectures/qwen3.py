"""Qwen 3, dense: Llama with a norm on the heads of q and k."""

from tqcli.architectures.llama import ARCHITECTURE as ARCHITECTURE
