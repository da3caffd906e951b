"""MLX's own quantisation, mlx 0.32 on the CPU: `mx.quantize` gives our bytes, `mx.dequantize` reads ours as we do.

On the CPU backend; the GPU backends of MLX round some codes another way.
"""

import numpy as np
import pytest

from tqcli.formats.mlx import Mlx

pytestmark = pytest.mark.peer
mx = pytest.importorskip("mlx.core")

RAW = {"BF16": "uint16", "F16": "uint16", "F32": "uint32"}
KINDS = {
    "normal": lambda shape, random: random.standard_normal(shape) * 0.03,
    "cubed": lambda shape, random: random.standard_normal(shape) ** 3 * 0.01,
    "student": lambda shape, random: random.standard_t(2, shape),
    "laplace": lambda shape, random: random.laplace(size=shape) * 0.02,
    "uniform": lambda shape, random: random.uniform(-1, 1, shape),
    "positive": lambda shape, random: np.abs(random.standard_normal(shape)),
    "negative": lambda shape, random: -np.abs(random.standard_normal(shape)) - 2,
    "integers": lambda shape, random: random.integers(-128, 128, shape),
    "quarters": lambda shape, random: random.integers(0, 5, shape) * 0.25,
    "tiny": lambda shape, random: random.standard_normal(shape) * 1e-9,
    "near the least scale": lambda shape, random: random.standard_normal(shape) * 3e-7,
    "huge": lambda shape, random: random.standard_normal(shape) * 1e4,
    "offset": lambda shape, random: random.standard_normal(shape) * 1e-3 + 7,
    "constant": lambda shape, random: np.full(shape, -0.7),
    "zero": lambda shape, random: np.zeros(shape),
    "negative zero": lambda shape, random: np.where(random.random(shape) < 0.5, -0.0, random.standard_normal(shape)),
    "one spike": lambda shape, random: np.where(np.arange(shape[-1]) % 64 == 5, 1.0, 0.0) * np.ones(shape),
    "ramp": lambda shape, random: np.linspace(0, 1, shape[-1]) * np.ones(shape),
}


def _weight(kind, dtype, shape=(6, 256)):
    """The weight as MLX holds it, and as we do."""
    values = KINDS[kind](shape, np.random.default_rng(len(kind))).astype(np.float32)
    theirs = mx.array(values).astype({"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}[dtype])
    return theirs, _raw(theirs, dtype).view({"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[dtype])


def _raw(array, dtype):
    return np.array(array.view(getattr(mx, RAW[dtype])))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_every_bit(bits, group_size, dtype):
    mlx = Mlx(bits=bits, group_size=group_size)
    for kind in KINDS:
        theirs, ours = _weight(kind, dtype)
        words, scales, biases = mx.quantize(theirs, group_size=group_size, bits=bits, stream=mx.cpu)
        expected = [np.array(words), _raw(scales, dtype), _raw(biases, dtype)]
        found = mlx.encode(ours, dtype)
        for part, array in zip(expected, found, strict=True):
            assert array.shape == part.shape
            assert array.tobytes() == part.tobytes(), kind


@pytest.mark.parametrize("scale", ["minmax", "least-squares"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_it_reads_ours_as_we_do(bits, scale):
    mlx = Mlx(bits=bits, scale=scale)
    for kind in KINDS:
        _, ours = _weight(kind, "F32")
        arrays = mlx.encode(ours, "F32")
        theirs = mx.dequantize(*map(mx.array, arrays), group_size=64, bits=bits, stream=mx.cpu)
        assert np.array(theirs).tobytes() == mlx.decode(arrays, 256).tobytes(), kind


def test_experts_are_rows():
    theirs = mx.array(np.random.default_rng(0).standard_normal((3, 4, 128)).astype(np.float32))
    parts = mx.quantize(theirs, group_size=64, bits=3, stream=mx.cpu)
    planned = Mlx(bits=3).stored("experts.weight", (3, 4, 128), "F32")
    assert [one.shape for one in planned] == [part.shape for part in parts]
    found = Mlx(bits=3).encode(np.array(theirs).reshape(12, 128), "F32")
    for part, array in zip(parts, found, strict=True):
        assert array.tobytes() == np.array(part).tobytes()
