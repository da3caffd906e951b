"""The sample folders hold what they say: every layout, read by the names of its tensors, gives the expected weights."""

import re

import numpy as np
import pytest
from support.checkpoints import read_file
from support.hlwq_samples import LAYOUTS, write_sample

from tqcli.codec import hlwq_variants as variants
from tqcli.codec.hlwq_tables import levels

NUMPY = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "I8": np.int8, "U8": np.uint8}
DOTTED = re.compile(r"(?P<module>.+)\.(?P<part>codes|norms|ct|ct_scaled)")
UNDERSCORED = re.compile(
    r"(?P<base>.+?)(?:(?:\.|__)weight)?(?:_e(?P<expert>\d+))?(?P<weight>(?:\.|__)weight)?"
    r"__(?P<part>packed|codes|norms|meta)"
)


def weights():
    random = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (96, 128),
        "model.layers.0.self_attn.q_proj.weight": (40, 128),
        "model.layers.0.self_attn.o_proj.weight": (128, 40),
        "model.layers.0.mlp.gate_proj.weight": (24, 200),
        "model.layers.0.mlp.down_proj.weight": (200, 24),
        "model.layers.0.router.proj.weight": (4, 128),
        "model.layers.0.input_layernorm.weight": (128,),
        "model.layers.0.experts.gate_up_proj": (3, 48, 200),
    }
    return {name: random.standard_normal(shape).astype(np.float32) * 0.02 for name, shape in shapes.items()}


def read(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, (dtype, shape, data) in read_file(path).items():
            if dtype in NUMPY:
                tensors[name] = np.frombuffer(data, NUMPY[dtype]).reshape(shape)
    return tensors


def grouped(tensors, pattern, key):
    found = {}
    for name, array in tensors.items():
        if match := pattern.fullmatch(name):
            found.setdefault(
                match[key] + f"_e{match['expert']}" if match.groupdict().get("expert") else match[key], {}
            )[match["part"]] = array
    return found


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one.startswith("polar") or one == "v5_notebook"])
def test_dotted(layout, tmp_path):
    sample = write_sample(layout, tmp_path / "out", weights(), {"model_type": "llama"})
    found = grouped(read(sample.folder), DOTTED, "module")
    assert sorted(module + ".weight" for module in found) == sorted(sample.decoded)
    for module, parts in found.items():
        expected = sample.decoded[module + ".weight"]
        if "ct" in parts:
            decoded = variants.decode_unpacked(parts["codes"], parts["norms"], parts["ct"], expected.shape[1])
        else:
            decoded = variants.decode_polar_engine(
                parts["codes"], parts["norms"], parts["ct_scaled"], expected.shape[1]
            )
        np.testing.assert_allclose(decoded, expected, atol=1e-7)


@pytest.mark.parametrize("layout", ["unpacked", "multi", "hlwq", "hlwq_underscored"])
def test_underscored(layout, tmp_path):
    sample = write_sample(layout, tmp_path / "out", weights(), {"model_type": "llama"})
    matrices = {}
    for name, values in sample.decoded.items():
        base = name.removesuffix(".weight")
        matrices.update({f"{base}_e{e}": one for e, one in enumerate(values)} if values.ndim == 3 else {base: values})
    found = {
        name.replace("__", "."): parts for name, parts in grouped(read(sample.folder), UNDERSCORED, "base").items()
    }
    assert sorted(found) == sorted(matrices)
    table = levels("truncated", 5)
    for base, parts in found.items():
        columns = matrices[base].shape[1]
        if "codes" in parts:
            decoded = variants.decode_unpacked(parts["codes"], parts["norms"], table, columns)
        else:
            decoded = variants.decode_multi(parts["packed"], parts["norms"], parts["meta"], table, columns)
        assert decoded.tobytes() == np.ascontiguousarray(matrices[base]).tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_lost(layout, tmp_path):
    sample = write_sample(layout, tmp_path / "out", weights(), {"model_type": "llama"})
    assert sorted([*sample.decoded, *sample.plain, *sample.missing]) == sorted(weights())
    for name, values in sample.decoded.items():
        truth = weights()[name]
        assert ((values - truth) ** 2).sum() < 0.06 * (truth**2).sum()
