"""FP8 weights against llm-compressor 0.14.0.1 and compressed-tensors 0.19.0, byte for byte, and their config entries.

Those packages need another transformers than ours, so they live in an environment of their own, which
`scripts/setup --peers` makes; the code under test is what `model_free_ptq` runs for each weight on a CPU.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tqcli.formats.fp8 import Fp8

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".venv-llmcompressor" / "bin" / "python"
pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.exists(), reason="no .venv-llmcompressor; run scripts/setup --peers"),
]
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SHAPES = [(1, 1), (3, 128), (17, 300), (128, 128), (129, 257), (260, 127)]
KINDS = {
    "normal": lambda values: values * 0.02,
    "cubed": lambda values: values**3,
    "row_magnitudes": lambda values: values * torch.exp(values[:, :1] * 25),
    "magnitudes": lambda values: values * torch.exp(values.roll(1) * 15),
    "denormal": lambda values: values * 1e-39,
    "denormal_halves": lambda values: values * 1e-6,
    "denormal_scales": lambda values: values * 1e-42,
    "huge": lambda values: values.sign() * 3e38,
    "zero": torch.zeros_like,
    "negative_zero": lambda values: torch.where(values > 1, values, -0.0),
    "constant": lambda values: torch.full_like(values, -0.1),
    "one_sided": torch.abs,
}
SCHEMES = """
import json, torch
from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter
from llmcompressor.entrypoints.model_free.validate import validate_config
groups = {}
for name in ("FP8_DYNAMIC", "FP8_BLOCK"):
    converter = ModelFreePtqConverter(validate_config(None, name, []))
    converter.process({"layer.weight": torch.ones(128, 128)})
    groups.update(converter.update_config(None).model_dump()["config_groups"])
print()
print(json.dumps(groups))
"""


def peer(*arguments):
    done = subprocess.run([str(PEER), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def weights():
    """Every kind, shape and dtype; then every finite number of two bytes under 40 scales."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for kind, make in KINDS.items():
        for shape in SHAPES:
            values = make(torch.randn(shape, generator=generator)).clamp(-3e38, 3e38)
            for dtype, torch_dtype in DTYPES.items():
                limit = torch.finfo(torch_dtype).max
                found[f"{kind}_{shape[0]}_{shape[1]}_{dtype}"] = values.clamp(-limit, limit).to(torch_dtype)
    for dtype, infinity in (("BF16", 0x7F80), ("F16", 0x7C00)):
        tops = torch.randint(1, infinity, (40, 1), generator=generator)
        words = torch.minimum(torch.arange(infinity), tops) | (torch.arange(infinity) & 1) << 15
        found[f"all_numbers_{dtype}"] = words.to(torch.uint16).view(DTYPES[dtype])
    return found


def as_array(tensor):
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def as_bytes(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_every_byte_of_every_weight(tmp_path):
    given = weights()
    save_file(given, tmp_path / "given.safetensors")
    peer(ROOT / "scripts" / "golden_fp8", tmp_path / "given.safetensors", tmp_path / "theirs.safetensors")
    theirs = load_file(tmp_path / "theirs.safetensors")

    different, codes_compared = [], 0
    for name, weight in given.items():
        dtype = name.rpartition("_")[2]
        for strategy in ("channel", "block"):
            fp8 = Fp8(strategy=strategy, division="weight")
            planned = fp8.stored(f"{name}.{strategy}.weight", tuple(weight.shape), dtype)
            for part, array in zip(planned, fp8.encode(as_array(weight), dtype), strict=True):
                expected = theirs.pop(part.name)
                codes_compared += array.size
                if (array.shape, array.tobytes()) != (tuple(expected.shape), as_bytes(expected)):
                    different.append(part.name)
    assert different == []
    assert not theirs
    assert codes_compared > 9_000_000


@pytest.mark.parametrize("strategy", ["channel", "block"])
def test_the_other_division_loses_less(tmp_path, strategy):
    weight = (torch.randn(200, 1000, generator=torch.Generator().manual_seed(2)) * 0.02).bfloat16()
    truth = weight.float().numpy()
    errors = []
    for division in ("weight", "float32"):
        fp8 = Fp8(strategy=strategy, division=division)
        errors.append(np.square(fp8.decode(fp8.encode(as_array(weight), "BF16"), 1000) - truth).sum())
    assert errors[1] < 0.993 * errors[0]


def test_the_entries_of_config_groups():
    groups = json.loads(peer("-c", SCHEMES).splitlines()[-1])
    assert groups == {fp8.scheme_name: fp8.scheme() for fp8 in (Fp8(strategy="channel"), Fp8(strategy="block"))}
