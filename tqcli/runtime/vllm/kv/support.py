"""Which compressed caches vLLM can serve a model with, from the model's configuration alone: for `tq serve --kv`.

On CPUs it is the cache of this package, for which the environment asks; on GPUs it is vLLM's own, which knows four
pairs of widths, and of all models only those whose layers are alike. Imports neither vLLM nor torch. Left out: what a
configuration does not show, which `checks` finds when the engine starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqcli.errors import InputError
from tqcli.kv.blocks import block_size
from tqcli.kv.settings import parse_widths
from tqcli.runtime.vllm.kv.asked import VARIABLE

_GPU_TYPES = {"k8v4": "turboquant_k8v4", "k4v4": "turboquant_4bit_nc", "k3v4": "turboquant_k3v4_nc",
              "k3v3": "turboquant_3bit_nc"}  # fmt: skip
_FLAG = "--kv-cache-dtype"
_KNOWN_LAYERS = ("full_attention", "sliding_attention")
_HEAD_SIZES = ("head_dim", "global_head_dim", "v_head_dim")
# Whose attention has something that no key of their configurations tells of.
_SINKS = ("gpt_oss",)
_SLOPES = ("bloom", "mpt")


@dataclass(frozen=True)
class Start:
    """What a cache adds to a vLLM command. environment: variables and their values."""

    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def start(kv: str, device: str) -> Start:
    """How vLLM is told to use a cache that `refusal` has nothing against."""
    if kv == "none":
        return Start()
    if kv == "fp8":
        return Start((_FLAG, "fp8"))
    if device == "cpu":
        return Start(environment={VARIABLE: kv})
    return Start((_FLAG, _GPU_TYPES[kv]))


def refusal(text_config: Mapping[str, Any], kv: str, device: str) -> str:
    """Why vLLM cannot serve a model with the cache `kv` on `device` (`cpu` or `cuda`); empty where it can.

    text_config: of config.json, the part about the language model. kv: `k4v3` and the like, `fp8` or `none`.
    """
    if kv in ("none", "fp8"):
        return ""
    try:
        parse_widths(kv)
    except InputError as error:
        return f"{error.what}; {error.why}" if error.why else error.what
    reasons = _on_cpu(text_config) if device == "cpu" else _on_gpu(text_config, kv)
    return next(reasons, "")


def _on_cpu(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("kv_lora_rank"):
        yield "it has latent attention, whose vectors have no heads"
    if config.get("is_encoder_decoder"):
        yield "it has an encoder, to which its decoder attends"
    others = sorted({str(kind) for kind in _layer_types(config)} - set(_KNOWN_LAYERS))
    if others:
        yield f"it has layers of kind `{others[0]}`"
    model_type = str(config.get("model_type", ""))
    if model_type.startswith(_SINKS):
        yield "it has learned attention sinks"
    if config.get("alibi") or model_type.startswith(_SLOPES):
        yield "its positions are slopes (ALiBi)"
    for size in sorted(_head_sizes(config)):
        try:
            block_size(size)
        except InputError as error:
            yield f"{error.what}: {error.why}"


def _on_gpu(config: Mapping[str, Any], kv: str) -> Iterator[str]:
    if kv not in _GPU_TYPES:
        yield f"on GPUs vLLM has {', '.join(_GPU_TYPES)} and fp8, not {kv}"
    uneven = _uneven(config)
    if uneven:
        yield f"{uneven}, which vLLM's TurboQuant cache for GPUs does not support"


def _uneven(config: Mapping[str, Any]) -> str:
    """Why attention is not the same in all layers, or not of heads; empty where it is."""
    if config.get("kv_lora_rank"):
        return "it has latent attention"
    if "sliding_attention" in _layer_types(config):
        return "it has layers with a sliding window"
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        return "it has a sliding window"
    if config.get("global_head_dim") not in (None, config.get("head_dim")):
        return "its layers have heads of unequal sizes"
    return ""


def _layer_types(config: Mapping[str, Any]) -> Sequence[Any]:
    kinds = config.get("layer_types")
    return kinds if isinstance(kinds, list | tuple) else ()


def _head_sizes(config: Mapping[str, Any]) -> set[int]:
    found = {config[name] for name in _HEAD_SIZES if isinstance(config.get(name), int)}
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if config.get("head_dim") is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        found.add(hidden // heads)
    return {size for size in found if size > 0}
