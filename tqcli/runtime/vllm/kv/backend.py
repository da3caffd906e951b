"""The attention backend: vLLM's own for CPUs, over a cache of packed cells.

New tokens are packed as soon as they are known, and attention reads nothing but what it unpacks: of its own tokens too.
So what a token sees depends on the sequence alone, and not on how a prompt was cut into chunks, on the batch, or on
what was found in the prefix cache. A layer's blocks are unpacked into a working memory laid out as vLLM's cache would
be, and vLLM's kernel runs on that: scale, soft cap, window and causality are its own.

Bound to vLLM 0.32. Left out: everything in `checks`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, SlidingWindowSpec

from tqcli.runtime.vllm.kv.asked import asked_settings
from tqcli.runtime.vllm.kv.cells import Cells
from tqcli.runtime.vllm.kv.checks import check_engine, check_layer, refuse
from tqcli.runtime.vllm.kv.parts import Part, Step, parts
from tqcli.runtime.vllm.kv.workspace import Workspace

# Numbers unpacked at a time for each thread, 2 MB in bfloat16: they are there twice, before and after vLLM's kernel has
# put them in its order.
_PIECE = 1 << 20


class CompressedAttentionBackend(CPUAttentionBackend):  # type: ignore[misc]
    """Stands in the place of `CPU_ATTN`, by whose name vLLM looks it up."""

    @staticmethod
    def get_impl_cls() -> type["CompressedAttentionImpl"]:
        """What layers compute with."""
        return CompressedAttentionImpl

    @staticmethod
    def get_builder_cls() -> type["CompressedMetadataBuilder"]:
        """What prepares a step."""
        return CompressedMetadataBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Pages of packed cells. Raises InputError for heads that cannot be compressed."""
        if spec.state_content_bytes is not None:
            return spec
        if type(spec) not in (FullAttentionSpec, SlidingWindowSpec):
            refuse(f"a cache of kind `{type(spec).__name__}`")
        if spec.head_size_v != spec.head_size:
            refuse("keys and values of different sizes")
        return replace(spec, dtype=torch.uint8, state_content_bytes=_cells(spec.head_size).bytes)


@dataclass
class CompressedMetadata(CPUAttentionMetadata):  # type: ignore[misc]
    """A step's. parts: each with what vLLM's kernel needs for it. workspace: what they are unpacked into."""

    parts: tuple[tuple[Part, CPUAttentionMetadata], ...] = ()
    workspace: Workspace | None = None


class CompressedMetadataBuilder(CPUAttentionMetadataBuilder):  # type: ignore[misc]
    """Of a group of layers that share a block table."""

    def __init__(self, kv_cache_spec: AttentionSpec, *args: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, *args, **kwargs)
        shape = (kv_cache_spec.num_kv_heads, kv_cache_spec.block_size, 2 * kv_cache_spec.head_size)
        self._workspace = Workspace(shape, self.dtype)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CompressedMetadata:
        """Which blocks the step reads, besides what vLLM prepares."""
        whole = super().build(common_prefix_len, common_attn_metadata, fast_build)
        step = Step(
            common_attn_metadata.query_start_loc.long().numpy(),
            common_attn_metadata.seq_lens.long().numpy(),
            common_attn_metadata.block_table_tensor.long().numpy(),
            self.block_size,
            self.window_size,
        )
        found = list(parts(step, self._workspace.usual_blocks))
        prepared = [replace(whole, block_table=part.table) for part in found]
        if len(found) > 1:
            # The kernel's plan of work is for these sequences and no others.
            prepared = [super(CompressedMetadataBuilder, self).build(0, _of(common_attn_metadata, p)) for p in found]
        return CompressedMetadata(
            **vars(whole), parts=tuple(zip(found, prepared, strict=True)), workspace=self._workspace
        )


class CompressedAttentionImpl(CPUAttentionBackendImpl):  # type: ignore[misc]
    """One layer's attention. Raises InputError for a layer that it is not for."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
        **further: Any,
    ) -> None:
        check_layer(
            attn_type=attn_type,
            kv_cache_dtype=kv_cache_dtype,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            further=further,
        )
        check_engine(get_current_vllm_config())
        super().__init__(
            num_heads,
            head_size,
            scale,
            num_kv_heads,
            None,
            sliding_window,
            kv_cache_dtype,
            logits_soft_cap,
            attn_type,
            kv_sharing_target_layer_name,
        )
        self._cells = _cells(head_size)

    def do_kv_cache_update(
        self,
        layer: Any,  # noqa: ARG002
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
    ) -> None:
        """Pack the step's tokens. key, value: (tokens or more, heads, head size); slot_mapping: (tokens,)."""
        count = slot_mapping.numel()
        self._cells.write(kv_cache, slot_mapping, key[:count], value[:count])

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CompressedMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend to what the cache holds. kv_cache: uint8 (blocks, heads, block tokens, bytes); others as vLLM's."""
        if attn_metadata is None or attn_metadata.workspace is None:
            # A forward pass that only finds out how much memory one takes.
            return output
        for part, prepared in attn_metadata.parts:
            cache = attn_metadata.workspace.blocks(len(part.blocks))
            self._unpack(layer, kv_cache, part, cache)
            tokens = part.tokens
            super().forward(
                layer, query[tokens], key, value, cache, prepared, output[tokens], output_scale, output_block_scale
            )
        return output

    def _unpack(self, layer: Any, kv_cache: Tensor, part: Part, cache: Tensor) -> None:
        """Fill `cache`, of vLLM's own layout, with a part's blocks: a few at a time."""
        _, heads, block_tokens, numbers = cache.shape
        step = max(1, _PIECE * torch.get_num_threads() // (heads * block_tokens * numbers))
        for start in range(0, len(cache), step):
            some = slice(start, start + step)
            keys, values = self._cells.read(kv_cache, part.blocks[some], part.lengths[some], cache.dtype)
            super().do_kv_cache_update(layer, keys, values, cache[some], torch.arange(len(keys)))


def _cells(head_size: int) -> Cells:
    settings = asked_settings()
    if settings is None or settings.widths is None:
        raise RuntimeError("the compressed cache is in place although the environment does not ask for it")
    return Cells.of(head_size, settings.widths, settings)


def _of(common: CommonAttentionMetadata, part: Part) -> CommonAttentionMetadata:
    """What vLLM would have prepared for the sequences of one part alone."""
    first, last = part.sequences.start, part.sequences.stop
    causal = common.causal
    return common.replace(
        query_start_loc=common.query_start_loc[first : last + 1] - part.tokens.start,
        query_start_loc_cpu=common.query_start_loc_cpu[first : last + 1] - part.tokens.start,
        seq_lens=common.seq_lens[part.sequences],
        num_reqs=last - first,
        num_actual_tokens=part.tokens.stop - part.tokens.start,
        block_table_tensor=part.table,
        slot_mapping=common.slot_mapping[part.tokens],
        causal=causal[part.sequences] if isinstance(causal, Tensor) else causal,
    )
