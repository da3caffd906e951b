"""MXFP4 weights of compressed-tensors, `mxfp4-pack-quantized`: E2M1 numbers, a power of two for each 32 columns.

A weight `B.weight` of N rows and K columns becomes `B.weight_packed`, U8 (N, K / 2), two numbers a byte, and
`B.weight_scale`, U8 (N, K / 32), exponents with a bias of 127. These are the bytes of llm-compressor 0.14's
`model_free_ptq` with the scheme MXFP4A16 of compressed-tensors 0.19 on a CPU; activations stay as they are. The
rules are told in tq_kernels.float4. Left out: the split of fused experts, and all of config.json but the one entry of
`config_groups`.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tq_kernels import float4
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.formats.options import FormatOptions, linear_refusal, weights_only

WEIGHT, PACKED, SCALE = ".weight", ".weight_packed", ".weight_scale"
GROUP = float4.GROUPS["mx"]


class MxFp4(FormatOptions):
    """The format has no options."""

    format: Literal["mxfp4"] = "mxfp4"

    @property
    def label(self) -> str:
        """For tables."""
        return "mxfp4"

    @property
    def error_limit(self) -> float:
        """Normal weights lose 0.0126, those with a few columns twenty times as large 0.03."""
        return 0.1

    def refusal(self, shape: Shape) -> str:
        """Groups are whole, and readers know these tensors as the weight of one linear layer."""
        return linear_refusal(shape, GROUP, "MXFP4")

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:  # noqa: ARG002 - none is in the dtype
        """Codes and scales; `.weight` in the name makes way for theirs."""
        layer = name.removesuffix(WEIGHT)
        rows, columns = shape
        return (
            Stored(layer + PACKED, "U8", (rows, columns // 2)),
            Stored(layer + SCALE, "U8", (rows, columns // GROUP)),
        )

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """(rows, columns) -> codes uint8 (rows, columns / 2), scales uint8 (rows, columns / 32)."""
        return float4.encode(weight, dtype, "mx")

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Codes and scales of some rows -> float32 (rows, columns), each number * scale."""
        codes, scales = stored
        if codes.shape[-1] * 2 != columns:
            raise ValueError(f"{columns} columns need {columns // 2} bytes a row, got {codes.shape[-1]}")
        return float4.decode(codes, scales, "mx")

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode: nothing more than the name."""
        return {}

    @property
    def scheme_name(self) -> str:
        """The key of `scheme` in `config_groups`, which is the preset's name in compressed-tensors."""
        return "MXFP4A16"

    def scheme(self) -> dict[str, Any]:
        """The entry of `config_groups` in compressed-tensors' quantization_config, as its version 0.19 writes it."""
        return weights_only(
            "mxfp4-pack-quantized",
            num_bits=4,
            type="float",
            strategy="group",
            group_size=GROUP,
            scale_dtype="torch.uint8",
        )
