"""What the compressed cache is not for: found when a layer is made, which is when the engine starts."""

from collections.abc import Iterator
from typing import Any, NoReturn

from tqcli.errors import InputError
from tqcli.runtime.vllm.kv.asked import VARIABLE


def refuse(what: str) -> NoReturn:
    """Raises InputError."""
    raise InputError(f"the compressed key-value cache does not work with {what}", fix=f"unset {VARIABLE}")


def check_layer(*, attn_type: Any, kv_cache_dtype: str, alibi_slopes: Any, sinks: Any, further: dict[str, Any]) -> None:
    """Raises InputError for a layer that the backend would get wrong, or that nobody has tried. Arguments as vLLM's."""
    for what in _reasons_of_layer(attn_type, kv_cache_dtype, alibi_slopes, sinks, further):
        refuse(what)


def _reasons_of_layer(
    attn_type: Any, kv_cache_dtype: str, alibi_slopes: Any, sinks: Any, further: dict[str, Any]
) -> Iterator[str]:
    # An enumeration whose members are text.
    kind = str(getattr(attn_type, "value", attn_type))
    if kind != "decoder":
        yield f"attention of kind `{kind}`"
    if kv_cache_dtype != "auto":
        yield f"--kv-cache-dtype {kv_cache_dtype}"
    if alibi_slopes is not None:
        yield "positions as slopes (ALiBi)"
    if sinks is not None:
        yield "learned attention sinks"
    if further:
        yield f"attention with {', '.join(sorted(further))}"


def check_engine(config: Any) -> None:
    """Raises InputError for a `VllmConfig` with something that handles the cache's bytes itself."""
    for what in _reasons_of_engine(config):
        refuse(what)


def _reasons_of_engine(config: Any) -> Iterator[str]:
    if config.kv_transfer_config is not None:
        yield "a connector that moves the cache elsewhere (--kv-transfer-config)"
    model = config.model_config
    if model is not None and model.is_hybrid:
        yield "a model with recurrent layers"
    parallel = config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "a context that is shared between processes"
