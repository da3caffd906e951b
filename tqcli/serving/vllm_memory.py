"""Memory of vLLM on a CPU: what weights and the cache of a context take, and how much of the rest its cache gets.

Without a word vLLM takes 92% of all memory for itself and does not start where less is free, which is everywhere but on
idle machines. On GPUs it measures what is left once the model is loaded, and says so itself; that is left to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqcli.errors import InputError, MachineError
from tqcli.kv.budget import cache_budget
from tqcli.kv.settings import CacheSettings, parse_widths
from tqcli.serving.budget import gigabytes, own_context
from tqcli.serving.model_config import transformers_config
from tqcli.serving.subject import Subject
from tqcli.serving.vllm_command import Wanted
from tqcli.serving.vllm_flags import named

_FLAG = "--kv-cache-memory-bytes"
_SAID = (_FLAG, "--gpu-memory-utilization")
_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
_RANKS = ("--tensor-parallel-size", "-tp")
_QUANTIZATION = ("--quantization", "-q")
# Python, torch and activations, of its processes together.
WORKING_BYTES = 2_500_000_000
_MIB = 1 << 20


@dataclass(frozen=True)
class VllmMemory:
    """Bytes. context: tokens. cache_bytes: of one sequence of so many; room: what the cache of all sequences gets.

    ranks: that share the room.
    """

    weights: int
    context: int
    bytes_per_token: int
    cache_bytes: int
    room: int
    available: int
    ranks: int

    @property
    def arguments(self) -> tuple[str, ...]:
        """For vLLM: each rank has its share of heads, and so of the cache."""
        return (_FLAG, str(self.room // self.ranks // _MIB * _MIB))


def plan_vllm_memory(
    subject: Subject, wanted: Wanted, inherited: Mapping[str, str], available: int
) -> VllmMemory | None:
    """Half of what the weights leave goes to the cache, or what one sequence of the context needs where that is more.

    inherited: the environment. None where the user says how much vLLM takes, and where what a model needs is not known.
    Raises MachineError where it is more than there is.
    """
    config = None if is_said(wanted.flags, inherited) else transformers_config(subject)
    if config is None:
        return None
    context = wanted.max_model_len or own_context(config)
    try:
        per_token, needed = _cache(config, wanted.kv, context)
    except InputError:
        # Layers that have no keys and values: vLLM knows what they have.
        return None
    # What is compressed while it is loaded takes half of 16 bits at most.
    is_late = any(name in _QUANTIZATION for name, _ in named(wanted.flags))
    weights = subject.nbytes // 2 if is_late else subject.nbytes
    left = available - weights - WORKING_BYTES
    if left < max(needed, _MIB):
        why = (
            f"weights take {gigabytes(weights)}, the cache of {context} tokens {gigabytes(needed)}, "
            f"vLLM itself some {gigabytes(WORKING_BYTES)}; {gigabytes(available)} are free"
        )
        fix = (
            "a smaller --max-model-len, or --kv k4v3" if left > 0 else "--engine cpu, which reads weights from the file"
        )
        raise MachineError(f"`{subject.source}` does not fit in memory", why=why, fix=fix)
    return VllmMemory(weights, context, per_token, needed, max(left // 2, needed), available, _ranks(wanted.flags))


def is_said(flags: Sequence[str], inherited: Mapping[str, str]) -> bool:
    """Whether the user says how much memory vLLM takes."""
    return any(name in _SAID for name, _ in named(flags)) or _VARIABLE in inherited


def _cache(config: Any, kv: str, context: int) -> tuple[int, int]:
    """Bytes that each further token of a long sequence takes, and those of a sequence of the context."""
    # Here, because it imports torch.
    from tqcli.runtime.vllm.kv.cells import Cells

    budget = cache_budget(config, "none")
    widths = None if kv == "fp8" else parse_widths(kv)
    per_token = total = 0
    for layer in budget.layers:
        shape, size = layer.shape, layer.exact_bytes
        if kv == "fp8":
            size = shape.heads * (shape.key_size + shape.value_size)
        elif widths is not None:
            size = shape.heads * Cells.of(shape.key_size, widths, CacheSettings(widths)).bytes
        is_sliding = shape.kind == "sliding"
        per_token += 0 if is_sliding else size
        total += size * (min(context, shape.window) if is_sliding else context)
    return per_token, total


def _ranks(flags: Sequence[str]) -> int:
    return next((int(value) for name, value in named(flags) if name in _RANKS and value.isdigit() and int(value)), 1)
