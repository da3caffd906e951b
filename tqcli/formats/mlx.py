"""MLX's affine format: unsigned codes in uint32 words, a scale and a bias a group. Apple's MLX loads it.

A weight `X.weight` of shape (..., K) becomes `X.weight`, U32 (..., K * bits / 32), and `X.scales` and `X.biases`,
(..., K / group_size) in the weight's own dtype; leading dimensions stay, so experts keep theirs. Each row of codes is
one little-endian bit stream, and a weight reads as code * scale + bias. Left out here: MLX's names for modules, and the
rest of its config.json.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tq_kernels import affine
from tq_kernels.types import FloatDtype

from tqcli.checkpoint.stored import Shape, Stored
from tqcli.formats.options import FormatOptions

WEIGHT, SCALES, BIASES = ".weight", ".scales", ".biases"

# About 2.5 times the relative squared error of normal weights in groups of 128, where it is largest.
_ERROR_LIMITS = {2: 0.5, 3: 0.12, 4: 0.03, 5: 0.008, 6: 0.002, 8: 0.0003}


class Mlx(FormatOptions):
    """Options of MLX's format. `scale` is how the encoder chooses scales and biases; readers do not see it.

    "minmax" gives the bytes of `mx.quantize` on MLX's CPU backend, "least-squares" a fifth to a third less error.
    """

    format: Literal["mlx"] = "mlx"
    bits: Literal[2, 3, 4, 5, 6, 8]
    group_size: Literal[32, 64, 128] = 64
    scale: Literal["minmax", "least-squares"] = "minmax"

    @property
    def label(self) -> str:
        """Such as `mlx4 g64`."""
        return f"mlx{self.bits} g{self.group_size}"

    @property
    def error_limit(self) -> float:
        """Above this a decode cannot be right."""
        return _ERROR_LIMITS[self.bits]

    def refusal(self, shape: Shape) -> str:
        """Groups are whole: MLX pads nothing."""
        if len(shape) < 2:
            return "it is no matrix"
        if shape[-1] % self.group_size:
            return f"{shape[-1]} columns are no multiple of {self.group_size}"
        return ""

    def stored(self, name: str, shape: Shape, dtype: str) -> tuple[Stored, ...]:
        """Codes, scales and biases, with the leading dimensions of the weight."""
        *leading, columns = shape
        module, count = name.removesuffix(WEIGHT), columns // self.group_size
        return (
            Stored(module + WEIGHT, "U32", (*leading, columns * self.bits // 32)),
            Stored(module + SCALES, dtype, (*leading, count)),
            Stored(module + BIASES, dtype, (*leading, count)),
        )

    def encode(self, weight: NDArray[Any], dtype: FloatDtype) -> tuple[NDArray[Any], ...]:
        """(rows, columns) -> uint32 (rows, columns * bits / 32), scales and biases (rows, columns / group_size)."""
        return affine.encode(weight, dtype, bits=self.bits, group_size=self.group_size, scale=self.scale)

    def decode(self, stored: tuple[NDArray[Any], ...], columns: int) -> NDArray[np.float32]:
        """Codes, scales and biases of some rows -> float32 (rows, columns): the product rounded, then the sum."""
        words, scales, biases = stored
        if columns != scales.shape[-1] * self.group_size:
            raise ValueError(f"{columns} columns need {columns // self.group_size} scales a row, not {scales.shape}")
        return affine.decode(words, scales, biases, bits=self.bits, group_size=self.group_size)

    def config(self) -> dict[str, Any]:
        """What a reader needs to decode."""
        return {"bits": self.bits, "group_size": self.group_size}
