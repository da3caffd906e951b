"""NVFP4 weights of compressed-tensors, `nvfp4-pack-quantized`: E2M1 numbers, an E4M3 scale for each 16 columns.

A weight `B.weight` of N rows and K columns becomes `B.weight_packed`, U8 (N, K / 2), two numbers a byte,
`B.weight_scale`, F8_E4M3 (N, K / 16), and `B.weight_global_scale`, F32 [1], by which every scale is divided. The
global scale depends on the greatest magnitude of the whole weight, and readers want that of projections which they
fuse (q, k, v; gate, up) to be one: `with_absmax` says it before anything is encoded. These are the bytes of
llm-compressor 0.14 with the scheme NVFP4A16 of compressed-tensors 0.19 on a CPU, but for half-precision weights all
below 0.041; activations stay as they are. The rules are told in tq_kernels.float4. Left out: finding that magnitude,
the split of fused experts, and all of config.json but the one entry of `config_groups`.
"""

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PrivateAttr
from tq_kernels import float4
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.formats.options import FormatOptions, linear_refusal, weights_only

WEIGHT, PACKED = ".weight", ".weight_packed"
SCALE, GLOBAL_SCALE = ".weight_scale", ".weight_global_scale"
GROUP = float4.GROUPS["nv"]


class NvFp4(FormatOptions):
    """The format has no options; what it needs to know of a weight comes with `with_absmax`."""

    format: Literal["nvfp4"] = "nvfp4"
    _absmax: float | None = PrivateAttr(default=None)

    def with_absmax(self, absmax: float) -> Self:
        """This format for weights whose greatest magnitude, over all that share a global scale, is absmax.

        A copy. Raises ValueError for an absmax that is negative or not finite.
        """
        if not 0 <= absmax <= float(np.finfo(np.float32).max):
            raise ValueError(f"absmax must be finite and not negative, not {absmax}")
        bound = self.model_copy()
        bound._absmax = absmax  # noqa: SLF001 - its own
        return bound

    @property
    def label(self) -> str:
        """For tables."""
        return "nvfp4"

    @property
    def error_limit(self) -> float:
        """Normal weights lose 0.009, and so do those with outliers; too small a global scale loses more."""
        return 0.1

    def refusal(self, shape: Shape) -> str:
        """Groups are whole, and readers know these tensors as the weight of one linear layer."""
        return linear_refusal(shape, GROUP, "NVFP4")

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:  # noqa: ARG002 - none is in the dtype
        """Codes, scales and the one global scale; `.weight` in the name makes way for theirs."""
        layer = name.removesuffix(WEIGHT)
        rows, columns = shape
        return (
            Stored(layer + PACKED, "U8", (rows, columns // 2)),
            Stored(layer + SCALE, "F8_E4M3", (rows, columns // GROUP)),
            Stored(layer + GLOBAL_SCALE, "F32", (1,), block_rows=max(rows, 1)),
        )

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """(rows, columns) -> codes uint8 (rows, columns / 2), scales uint8 (rows, columns / 16), float32 (1,).

        Raises ValueError where `with_absmax` has not been called.
        """
        if self._absmax is None:
            raise ValueError("nvfp4 encodes only after with_absmax: its global scale depends on the whole weight")
        scale = float4.global_scale(self._absmax, dtype)
        codes, scales = float4.encode(weight, dtype, "nv", global_scale=scale)
        return codes, scales, np.array([scale], np.float32)

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Codes and scales of some rows, and the global scale -> float32 (rows, columns), not rounded further."""
        codes, scales, global_scale = stored
        if codes.shape[-1] * 2 != columns:
            raise ValueError(f"{columns} columns need {columns // 2} bytes a row, got {codes.shape[-1]}")
        return float4.decode(codes, scales, "nv", global_scale=float(global_scale.reshape(-1)[0]))

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode: nothing more than the name."""
        return {}

    @property
    def scheme_name(self) -> str:
        """The key of `scheme` in `config_groups`, which is the preset's name in compressed-tensors."""
        return "NVFP4A16"

    def scheme(self) -> dict[str, Any]:
        """The entry of `config_groups` in compressed-tensors' quantization_config, as its version 0.19 writes it."""
        return weights_only(
            "nvfp4-pack-quantized",
            num_bits=4,
            type="float",
            strategy="tensor_group",
            group_size=GROUP,
            scale_dtype="torch.float8_e4m3fn",
        )
