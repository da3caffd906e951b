"""The flags for vLLM that follow `--`: those that it would take and then ignore, or that would end badly, are refused.

All of it was seen with vLLM 0.32. On CPU it takes every type of cache, leaves all but FP8 as they are and writes beyond
their end once they are full; it has no Ray there, and stages of a pipeline die with the first request, of any model.
"""

from collections.abc import Iterator, Sequence

from tqcli.errors import InputError
from tqcli.runtime.vllm.kv.support import refusal
from tqcli.serving.offload import check_not_packed_late, check_offloading, is_offloading
from tqcli.serving.subject import Subject

_OWN = ("--host", "--port", "--api-key", "--max-model-len", "--served-model-name", "--revision")
_CACHE = "--kv-cache-dtype"
_CPU_CACHE_TYPES = ("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2")
_QUANTIZATION = ("--quantization", "-q")
_STAGES = ("--pipeline-parallel-size", "-pp")
_EXECUTOR = "--distributed-executor-backend"


def check_flags(subject: Subject, flags: Sequence[str], kv: str, offload_experts: float | None, device: str) -> None:
    """kv, offload_experts: what tq's own flags say of the same things. Raises InputError."""
    for name, value in named(flags):
        if name in _OWN or name == "--model":
            fix = "name the model first" if name == "--model" else f"{name} before `--`"
            raise InputError(f"`{name}` is one of tq's own", why="it was given after `--`", fix=fix)
        if name == _CACHE:
            if kv != "none":
                raise InputError(f"`--kv {kv}` and `{_CACHE}` say the same thing twice", fix="one of them")
            _check_cache(subject, value, device)
        if is_offloading(name):
            if offload_experts is not None:
                raise InputError(f"`--offload-experts` and `{name}` say the same thing twice", fix="one of them")
            check_offloading(subject, name, device)
        if offload_experts is not None and name in _QUANTIZATION:
            check_not_packed_late(value)
        if device == "cpu":
            _check_machines(name, value)


def named(flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(--name, value) of each; the value of what takes none is whatever follows. vLLM takes underscores too."""
    for i, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        yield name.replace("_", "-"), value if equals else "".join(flags[i + 1 : i + 2])


def _check_cache(subject: Subject, cache_type: str, device: str) -> None:
    said = f"{_CACHE} {cache_type}"
    if device == "cpu" and cache_type not in _CPU_CACHE_TYPES:
        why = "vLLM takes it, ignores it, and crashes when the cache is full"
        raise InputError(f"`{said}` does not work in vLLM on CPU", why=why, fix="--kv k4v3 and the like, fp8 or none")
    if not cache_type.startswith("turboquant"):
        return
    # All of them have the same limits.
    reason = refusal(subject.text_config, "k8v4", device)
    if reason:
        raise InputError(f"`{said}` does not work with this model in vLLM", why=reason, fix="--kv fp8 or none")


def _check_machines(name: str, value: str) -> None:
    """What takes several GPUs or machines."""
    if name in _STAGES and value != "1":
        why = "its first request ends with an error there, whatever the model is"
        raise InputError(f"`{name} {value}` does not work in vLLM on CPU", why=why, fix="--tensor-parallel-size")
    if name == _EXECUTOR and value == "ray":
        raise InputError(f"`{name} ray` does not work in vLLM on CPU", why="it has no Ray there", fix="leave it out")
