"""Qwen 2 and 2.5: Llama with biases on q, k and v."""

from tqcli.architectures.llama import ARCHITECTURE as ARCHITECTURE
