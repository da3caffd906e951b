"""FP8 weights of compressed-tensors: E4M3 codes, one scale a row or one a block of 128 x 128.

A weight `B.weight` of N rows and K columns becomes `B.weight`, F8_E4M3 (N, K), and `B.weight_scale` in the weight's
own dtype: (N, 1), or (ceil(N / 128), ceil(K / 128)). These are the bytes of llm-compressor 0.14's `model_free_ptq`
with the schemes FP8_DYNAMIC and FP8_BLOCK of compressed-tensors 0.19. Left out: the split of fused experts, and all of
config.json but the one entry of `config_groups`.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tq_kernels import float8
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.formats.options import FormatOptions, quantization_arguments, weights_only

WEIGHT, SCALE = ".weight", ".weight_scale"
BLOCK = 128


class Fp8(FormatOptions):
    """Options of the format. `division` is how the encoder rounds; readers do not see it."""

    format: Literal["fp8"] = "fp8"
    strategy: Literal["channel", "block"] = "channel"
    division: Literal["float32", "weight"] = "float32"

    @property
    def label(self) -> str:
        """Such as `fp8 channel`."""
        return f"fp8 {self.strategy}"

    @property
    def block_rows(self) -> int:
        """Rows that share a scale."""
        return BLOCK if self.strategy == "block" else 1

    @property
    def error_limit(self) -> float:
        """No number of E4M3's normal range is farther than 1/17 of itself from a code, and the scale clips little."""
        return 0.004

    def refusal(self, shape: Shape) -> str:
        """Readers know these tensors as the weight of one linear layer."""
        return "" if len(shape) == 2 else f"it has {len(shape)} dimensions, and FP8 weights have 2"

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:
        """The weight's codes under its own name, and its scales beside them; `.weight` is added where it is missing."""
        layer = name.removesuffix(WEIGHT)
        rows, columns = shape
        scales = (-(-rows // self.block_rows), -(-columns // self._block(columns)[1]))
        return (
            Stored(layer + WEIGHT, "F8_E4M3", shape),
            Stored(layer + SCALE, dtype, scales, block_rows=self.block_rows),
        )

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """(rows, columns) -> codes uint8 (rows, columns), scales (blocks down, blocks across) of dtype."""
        return float8.encode(weight, dtype, self._block(weight.shape[1]), division=self.division)

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Codes and scales of some rows -> float32 (rows, columns), each code * scale."""
        codes, scales = stored
        return float8.decode(codes, scales, self._block(columns))

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode."""
        return {"strategy": self.strategy}

    @property
    def scheme_name(self) -> str:
        """The key of `scheme` in `config_groups`, which is the preset's name in compressed-tensors."""
        return "FP8_BLOCK" if self.strategy == "block" else "FP8_DYNAMIC"

    def scheme(self) -> dict[str, Any]:
        """The entry of `config_groups` in compressed-tensors' quantization_config, as its version 0.19 writes it."""
        number = {"num_bits": 8, "type": "float"}
        if self.strategy == "block":
            scheme = weights_only("float-quantized", **number, strategy="block", block_structure=[BLOCK, BLOCK])
            activations = quantization_arguments(**number, strategy="group", group_size=BLOCK, dynamic=True)
        else:
            scheme = weights_only("float-quantized", **number, strategy="channel")
            activations = quantization_arguments(**number, strategy="token", dynamic=True)
        return {**scheme, "input_activations": activations}

    def _block(self, columns: int) -> float8.Block:
        return (BLOCK, BLOCK) if self.strategy == "block" else (1, columns)
