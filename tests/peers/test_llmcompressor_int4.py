"""INT4, MXFP4 and NVFP4 weights against llm-compressor 0.14.0.1 and compressed-tensors 0.19.0, byte for byte.

Those packages need another transformers than ours, so they live in an environment of their own, which
`scripts/setup --peers` makes; the code under test is what `model_free_ptq` runs for each weight on a CPU, and the
decompression that its loaders run. The golden files of the formats' tests come from the same program.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tq_kernels.floats import widen

from tqcli.formats.int4 import Int4
from tqcli.formats.mxfp4 import MxFp4
from tqcli.formats.nvfp4 import NvFp4

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".venv-llmcompressor" / "bin" / "python"
pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.exists(), reason="no .venv-llmcompressor; run scripts/setup --peers"),
]
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
FORMATS = {"int4-32": Int4(group_size=32), "int4-64": Int4(), "int4-128": Int4(group_size=128),
           "mxfp4": MxFp4(), "nvfp4": NvFp4()}  # fmt: skip
PARTS = {"weight_packed", "weight_scale", "weight_shape", "weight_global_scale"}

# input.safetensors: WEIGHT|FORMAT -> weight. Writes WEIGHT|FORMAT|PART, and prints the entries of config_groups.
QUANTIZE = """
import json, sys
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization import preset_name_to_scheme
from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter
from safetensors.torch import load_file, save_file

def scheme(name):
    if not name.startswith("int4"):
        return preset_name_to_scheme({"mxfp4": "MXFP4A16", "nvfp4": "NVFP4A16"}[name], ["Linear"])
    size = int(name.split("-")[1])
    arguments = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=size, symmetric=True)
    return QuantizationScheme(targets=["Linear"], weights=arguments)

torch.set_num_threads(1)
written, entries = {}, {}
for key, weight in load_file(sys.argv[1]).items():
    name = key.split("|")[1]
    converter = ModelFreePtqConverter(QuantizationConfig(config_groups={"group": scheme(name)}))
    found = converter.process({"layer.weight": weight})
    state = {part.removeprefix("layer."): tensor.detach().contiguous() for part, tensor in found.items()}
    config = converter.update_config(None)
    group = config.config_groups["group"]
    compressor = BaseCompressor.get_value_from_registry(config.model_dump()["format"])
    decoded = compressor.decompress(state, group)["weight"].detach().contiguous()
    written |= {f"{key}|{part}": tensor for part, tensor in state.items()} | {f"{key}|decoded": decoded}
    entries[name] = json.loads(group.model_dump_json())
save_file(written, sys.argv[2])
print()
print(json.dumps(entries))
"""

# ours.safetensors, theirs.safetensors: decompresses what another encoder wrote.
DECOMPRESS = """
import sys
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

arguments = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=64, symmetric=True)
scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
state = load_file(sys.argv[1])
save_file({"weight": PackedQuantizationCompressor.decompress(state, scheme)["weight"].contiguous()}, sys.argv[2])
"""


def peer(program, *arguments):
    done = subprocess.run([str(PEER), "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def weights():
    """Every kind and dtype, as float32 before the cast."""
    random = np.random.default_rng(7)
    normal = lambda *shape: random.standard_normal(shape)  # noqa: E731
    powers = lambda low, high, *shape: np.exp2(random.integers(low, high, shape))  # noqa: E731
    kinds = {
        "normal": normal(64, 256) * 0.02,
        "heavy": random.standard_t(3, (64, 256)) * 0.1,
        "unit": normal(64, 256),
        "row_magnitudes": normal(256, 256) * powers(-150, 122, 256, 1),
        "half_row_magnitudes": normal(256, 256) * powers(-27, 11, 256, 1),
        "magnitudes": normal(256, 256) * powers(-150, 4, 256, 256),
        "half_magnitudes": normal(256, 256) * powers(-26, 11, 256, 256),
        "zero": np.zeros((2, 256)),
        "negative_zero": -np.zeros((2, 256)),
        "constant": np.full((2, 256), 0.37),
        "one_hot": -np.eye(8, 256),
        "one_sided": np.abs(normal(8, 256)),
        "halves": random.integers(-15, 16, (64, 256)) * 0.5,
        "quarters": random.integers(-28, 29, (64, 256)) * 0.25,
        "eighths": random.integers(-60, 61, (64, 256)) * 0.125,
    }
    found = {}
    for kind, values in kinds.items():
        for dtype, torch_dtype in DTYPES.items():
            limit = 30000 if dtype == "F16" else 1e38
            found[f"{kind}_{dtype}"] = torch.from_numpy(np.clip(values, -limit, limit)).to(torch_dtype)
    return found


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """What the peer makes of every weight in every format: weights, tensors and the entries of config_groups."""
    folder = tmp_path_factory.mktemp("llmcompressor")
    given = weights()
    save_file(
        {f"{name}|{kind}": weight.clone() for name, weight in given.items() for kind in FORMATS},
        folder / "in.safetensors",
    )
    printed = peer(QUANTIZE, folder / "in.safetensors", folder / "out.safetensors")
    return given, load_file(folder / "out.safetensors"), json.loads(printed.splitlines()[-1])


def as_array(tensor):
    tensor = tensor.contiguous()
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def bound(made, array, dtype):
    if isinstance(made, NvFp4):
        return made.with_absmax(float(np.abs(widen(array, dtype)).max()))
    return made.model_copy(update={"scale": "absmax"}) if isinstance(made, Int4) else made


@pytest.mark.parametrize("kind", FORMATS)
def test_equal_bytes(quantized, kind):
    """The encoder's every tensor, and the decoder's numbers once they are rounded to the dtype of the peer's."""
    given, theirs, _ = quantized
    for name, weight in given.items():
        array, dtype = as_array(weight), name.rsplit("_", 1)[1]
        made = bound(FORMATS[kind], array, dtype)
        planned = made.stored("layer.weight", tuple(weight.shape), dtype)
        arrays = list(made.encode(array, dtype))
        decoded = torch.from_numpy(made.decode(tuple(arrays), weight.shape[1]))
        found = {part.name: part.content if part.content else arrays.pop(0).tobytes() for part in planned}
        expected = {part: theirs[f"{name}|{kind}|{part}"] for part in PARTS if f"{name}|{kind}|{part}" in theirs}
        assert found.keys() == {f"layer.{part}" for part in expected}, name
        for part, tensor in expected.items():
            assert found[f"layer.{part}"] == as_array(tensor).tobytes(), (name, part)
        peers = theirs[f"{name}|{kind}|decoded"]
        assert as_array(decoded.to(peers.dtype)).tobytes() == as_array(peers).tobytes(), name


def test_equal_config_entries(quantized):
    assert quantized[2] == {kind: made.scheme() for kind, made in FORMATS.items()}


@pytest.mark.parametrize("scale", ["search", "signed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_peer_decompresses_searched_scales_as_we_do(tmp_path, scale, dtype):
    weight = (torch.randn(48, 512, generator=torch.Generator().manual_seed(3)) * 0.02).to(DTYPES[dtype])
    made = Int4(scale=scale)
    words, scales = made.encode(as_array(weight), dtype)
    state = {
        "weight_packed": torch.from_numpy(words),
        "weight_scale": torch.from_numpy(scales).view(DTYPES[dtype]),
        "weight_shape": torch.tensor(weight.shape),
    }
    save_file(state, tmp_path / "ours.safetensors")
    peer(DECOMPRESS, tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors")
    theirs = load_file(tmp_path / "theirs.safetensors")["weight"]
    ours = torch.from_numpy(made.decode((words, scales), 512)).to(DTYPES[dtype])
    assert torch.equal(theirs, ours)
    assert bool((scales.view(np.int16 if dtype != "F32" else np.int32) < 0).any()) == (scale == "signed")


def test_half_precision_weights_that_the_peer_scales_by_one(tmp_path):
    """The one place where NVFP4 differs on purpose: below 0.041 the peer's global scale overflows float16."""
    weight = (torch.randn(16, 256, generator=torch.Generator().manual_seed(4)) * 0.004).half()
    save_file({"small|nvfp4": weight}, tmp_path / "in.safetensors")
    peer(QUANTIZE, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    theirs = load_file(tmp_path / "out.safetensors")
    assert theirs["small|nvfp4|weight_global_scale"].item() == 1
    made = NvFp4().with_absmax(weight.abs().max().item())
    ours = made.decode(made.encode(weight.numpy(), "F16"), 256)
    loss = lambda decoded: float(((decoded - weight.float()) ** 2).sum() / (weight.float() ** 2).sum())  # noqa: E731
    assert loss(torch.from_numpy(ours)) < 0.011
    assert loss(theirs["small|nvfp4|decoded"].float()) > 2 * loss(torch.from_numpy(ours))
