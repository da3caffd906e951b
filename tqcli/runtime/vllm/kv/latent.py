"""The backend of latent attention while the compressed cache is asked for: it refuses.

Latent vectors have no heads, and two parts of different kinds; vLLM would store them uncompressed, and say nothing.
"""

from typing import NoReturn

from tqcli.runtime.vllm.kv.backend import CompressedAttentionBackend
from tqcli.runtime.vllm.kv.checks import refuse


class NoLatentAttentionBackend(CompressedAttentionBackend):
    """Raises InputError as soon as a layer asks for anything."""

    @classmethod
    def is_mla(cls) -> bool:
        """What a selector may ask first."""
        return True

    @staticmethod
    def get_name() -> NoReturn:
        """Refuses."""
        refuse("latent attention")

    @staticmethod
    def get_impl_cls() -> NoReturn:
        """Refuses."""
        refuse("latent attention")
