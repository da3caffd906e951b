"""What the plug-in calls in each process of vLLM: the compressed cache, where the environment asks for it.

On CPUs vLLM takes one attention backend whatever it is told, so ours stands in its place. Models with latent attention
have two of their own there, which would go on uncompressed without a word: in their place stands one that refuses.
"""

from tqcli.errors import InputError
from tqcli.runtime.vllm.kv.asked import VARIABLE, asked_settings

_PACKAGE = "tqcli.runtime.vllm.kv"


def register() -> None:
    """Put the compressed cache in place; nothing where `TQ_KV` is not set, or `none`.

    Raises InputError for a value that makes no sense, another platform than a CPU, and a vLLM that has no place for it.
    """
    settings = asked_settings()
    if settings is None:
        return
    from vllm.platforms import current_platform
    from vllm.v1.attention.backend import AttentionBackend
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if not current_platform.is_cpu():
        raise InputError(
            f"`{VARIABLE}={settings.widths}` works with vLLM on CPUs only",
            why=f"this is `{current_platform.device_name}`",
            fix=f"unset {VARIABLE}; vLLM's own types are --kv-cache-dtype",
        )
    if not hasattr(AttentionBackend, "customize_spec"):
        raise InputError(
            f"`{VARIABLE}` does not work with this vLLM",
            why="a backend cannot say there what its pages look like",
            fix="vLLM 0.32",
        )
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{_PACKAGE}.backend.CompressedAttentionBackend")
    for latent in (AttentionBackendEnum.CPU_MLA, AttentionBackendEnum.AMX_MLA):
        register_backend(latent, f"{_PACKAGE}.latent.NoLatentAttentionBackend")
