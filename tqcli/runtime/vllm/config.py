"""The quantisation that vLLM knows by the name in config.json. It says which method each layer gets.

Every linear layer, expert layer, embedding and head gets one of ours, whatever the checkpoint holds for it: what turns
out to be plain becomes vLLM's own plain layer once it is loaded. So no list of exceptions has to be translated from a
checkpoint's names to vLLM's.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform

from tqcli.errors import InputError
from tqcli.formats.native import QUANT_METHOD
from tqcli.runtime.vllm.cores import let_threads_sleep
from tqcli.runtime.vllm.embedding import PackedEmbeddingMethod
from tqcli.runtime.vllm.experts import PackedExpertsMethod
from tqcli.runtime.vllm.linear import PackedLinearMethod
from tqcli.runtime.vllm.settings import read_settings

# The second one is for `--quantization tq`.
NAMES = (QUANT_METHOD, "tq")


class TqQuantization(QuantizationConfig):  # type: ignore[misc]
    """section: `quantization_config` of config.json; None for a checkpoint that has none, plain or published."""

    def __init__(self, section: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.section = section
        self.settings = read_settings()
        if not (current_platform.is_cpu() or current_platform.is_cuda()):
            why = f"this is `{current_platform.device_name}`"
            raise InputError("packed checkpoints run on CPU and CUDA in vLLM", why=why, fix="tq serve --engine cpu")
        if current_platform.is_cpu() and self.settings.activations != "float":
            # The first of these is made before vLLM begins the processes that compute.
            let_threads_sleep(os.environ)

    def get_name(self) -> str:
        """As in config.json."""
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """What weights are decoded to."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Plain torch runs on every GPU that vLLM runs on."""
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Everything is in config.json; the loader looks for the rest."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TqQuantization":
        """From the section of config.json."""
        return cls(config)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """A user who says one of our names for one of our folders is right, whichever it is."""
        del hf_config
        ours = hf_quant_cfg.get("quant_method") == QUANT_METHOD
        return QUANT_METHOD if ours and user_quant in NAMES else None

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """One of ours for every layer that has a weight of two or three dimensions."""
        if isinstance(layer, LinearBase):
            return PackedLinearMethod(prefix, self.settings.activations)
        if isinstance(layer, RoutedExperts):
            return PackedExpertsMethod(layer.moe_config, prefix, self.settings.activations)
        if isinstance(layer, VocabParallelEmbedding):
            return PackedEmbeddingMethod(prefix, self.settings.activations)
        return None


def register() -> None:
    """Make it known, once."""
    for name in NAMES:
        if name not in QUANTIZATION_METHODS:
            register_quantization_config(name)(TqQuantization)
