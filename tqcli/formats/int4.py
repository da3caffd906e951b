"""INT4 weights of compressed-tensors, `pack-quantized`: symmetric, one scale a group of columns.

A weight `B.weight` of N rows and K columns becomes `B.weight_packed`, I32 (N, K / 8), `B.weight_scale` in the weight's
own dtype (N, K / group_size), and `B.weight_shape`, I64 [N, K]. With `scale = "absmax"` these are the bytes of
compressed-tensors 0.19 and llm-compressor 0.14 for such a scheme; the other rules lose less and read the same. How
each chooses scales is told in tq_kernels.int4. Left out: the split of fused experts, and all of config.json but the
one entry of `config_groups`.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tq_kernels import int4
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.formats.options import FormatOptions, linear_refusal, weights_only

WEIGHT, PACKED, SCALE, SHAPE = ".weight", ".weight_packed", ".weight_scale", ".weight_shape"


class Int4(FormatOptions):
    """Options of the format. `scale` is how the encoder chooses scales; readers do not see it.

    "signed" lets scales be negative, for a tenth less error. Readers that multiply number by scale take that, vLLM's
    16-bit Marlin kernels among them; its 8-bit activations do not (vllm-project/vllm#48905).
    """

    format: Literal["int4"] = "int4"
    group_size: Literal[32, 64, 128] = 64
    scale: Literal["absmax", "search", "signed"] = "search"

    @property
    def label(self) -> str:
        """Such as `int4 g64`."""
        return f"int4 g{self.group_size}"

    @property
    def error_limit(self) -> float:
        """Normal weights lose 0.007 to 0.012, those with a few columns twenty times as large 0.09."""
        return 0.1

    def refusal(self, shape: Shape) -> str:
        """Groups are whole, and readers know these tensors as the weight of one linear layer."""
        return linear_refusal(shape, self.group_size, "INT4")

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:
        """Words, scales and the shape; `.weight` in the name makes way for theirs."""
        layer = name.removesuffix(WEIGHT)
        rows, columns = shape
        return (
            Stored(layer + PACKED, "I32", (rows, columns // int4.PER_WORD)),
            Stored(layer + SCALE, dtype, (rows, columns // self.group_size)),
            Stored(layer + SHAPE, "I64", (2,), content=np.array(shape, "<i8").tobytes()),
        )

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """(rows, columns) -> words int32 (rows, columns / 8), scales of dtype (rows, columns / group_size)."""
        return int4.encode(weight, dtype, self.group_size, scale=self.scale)

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Words and scales of some rows -> float32 (rows, columns), each number * scale, not rounded to the dtype."""
        words, scales = stored
        if words.shape[-1] * int4.PER_WORD != columns:
            raise ValueError(f"{columns} columns need {columns // int4.PER_WORD} words a row, got {words.shape[-1]}")
        return int4.decode(words, scales, self.group_size)

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode."""
        return {"group_size": self.group_size}

    @property
    def scheme_name(self) -> str:
        """The key of `scheme` in `config_groups`; at group 128 it is the preset of that name."""
        return "W4A16" if self.group_size == 128 else f"W4A16_G{self.group_size}"

    def scheme(self) -> dict[str, Any]:
        """The entry of `config_groups` in compressed-tensors' quantization_config, as its version 0.19 writes it."""
        return weights_only("pack-quantized", num_bits=4, type="int", strategy="group", group_size=self.group_size)
