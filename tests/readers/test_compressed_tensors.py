"""compressed-tensors folders as they are read: what they decode to, and every contradiction refused by its name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkpoints
from support.command import succeed, tq

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.codec.floats import as_array
from tqcli.errors import InputError
from tqcli.packed import decode_rows
from tqcli.readers.compressed_tensors import packed_tensors
from tqcli.readers.find import read

LAYER = "model.language_model.layers.0."
Q_PROJ = LAYER + "self_attn.q_proj.weight"
EXPERT = LAYER + "experts.2.down_proj.weight"
RECIPES = {
    "fp8-dynamic": ("-r", "fp8-dynamic"),
    "fp8-block": ("-r", "fp8-block"),
    "w4a16": ("-r", "w4a16", "--set", "group_size=32"),
    "mxfp4": ("-r", "mxfp4"),
    "nvfp4a16": ("-r", "nvfp4a16"),
}
SUFFIXES = {
    "fp8-dynamic": ("", "_scale"),
    "fp8-block": ("", "_scale"),
    "w4a16": ("_packed", "_scale", "_shape"),
    "mxfp4": ("_packed", "_scale"),
    "nvfp4a16": ("_packed", "_scale", "_global_scale"),
}

# `.weight_shape` is not needed to decode: widths follow from the words.
NEEDED = [(name, suffix) for name in RECIPES for suffix in SUFFIXES[name] if suffix != "_shape"]


@pytest.fixture(scope="module")
def folders(gemma_folder, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    for name, options in RECIPES.items():
        succeed("convert", gemma_folder, root / name, *options)
    return {name: root / name for name in RECIPES}


@pytest.fixture
def published(folders, here):
    """A function: a copy as another tool would have left it, without our record, after tensors were changed."""

    def copy(name: str, changes=None, drop=()) -> Path:
        folder = Path(shutil.copytree(folders[name], here / "out"))
        for ours in ("tq_config.json", "tq_recipe.toml"):
            (folder / ours).unlink()
        (folder / "model.safetensors.index.json").unlink()
        if changes or drop:
            checkpoints.rewrite(folder, changes or {}, drop=drop)
        return folder

    return copy


def tensors_of(folder: Path) -> dict[str, checkpoints.Tensor]:
    return checkpoints.read_file(folder / "model.safetensors")


def contents(folder: Path):
    return read(open_checkpoint(LocalFolder(folder)))


def refused(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        contents(folder)
    return caught.value


@pytest.mark.parametrize("name", RECIPES)
def test_ours_and_published_are_read_alike(name, folders, published):
    ours, theirs = contents(folders[name]), contents(published(name))
    assert (ours.layout, theirs.layout) == ("compressed_tensors", "compressed_tensors")
    assert ours.packed == theirs.packed
    assert (bool(ours.record), bool(theirs.record)) == (True, False)
    assert ours.packed.keys() >= {Q_PROJ, EXPERT}
    for weight in (Q_PROJ, EXPERT):
        parts = {tensor.name for tensor in ours.packed[weight].tensors}
        assert parts == {weight + suffix for suffix in SUFFIXES[name]}


@pytest.mark.parametrize("name", RECIPES)
def test_rows_decode_as_the_format_does(name, folders):
    storage = LocalFolder(folders[name])
    on_disk = tensors_of(folders[name])
    for weight, packed in read(open_checkpoint(storage)).packed.items():
        arrays = []
        for part in packed.parts:
            dtype, shape, data = on_disk[part.tensor.name]
            arrays.append(as_array(data, dtype).reshape(shape if len(shape) == 2 else (1, -1)))
        whole = packed.format.decode(tuple(arrays), packed.columns)
        assert whole.shape == (packed.rows, packed.columns) == packed.shape, weight
        for begin, end in ((0, packed.rows), (1, 2), (packed.rows - 1, packed.rows), (packed.rows // 3, packed.rows)):
            rows = decode_rows(storage, packed, begin, end)
            assert rows.tobytes() == whole[begin:end].tobytes(), (weight, begin)


@pytest.mark.parametrize(("name", "suffix"), NEEDED)
def test_a_part_is_missing(name, suffix, published):
    error = refused(published(name, drop=[Q_PROJ + suffix]))
    assert Q_PROJ in error.what
    assert error.why


@pytest.mark.parametrize("name", RECIPES)
def test_only_what_goes_beside_is_left(name, published):
    """Without codes and scales, the rest would pass for plain tensors."""
    left = SUFFIXES[name][2:]
    folder = published(name, drop=[Q_PROJ + suffix for suffix in SUFFIXES[name][:2]])
    if left:
        assert f"`{Q_PROJ}{left[0]}` has no `.weight_scale` beside it" in refused(folder).what
    else:
        assert Q_PROJ not in contents(folder).packed


def float_tensor(dtype: str, *shape: int) -> checkpoints.Tensor:
    return checkpoints.tensor(shape, dtype, scale=1.0)


def raw(dtype: str, *shape: int, width: int = 1) -> checkpoints.Tensor:
    return dtype, shape, bytes(int(np.prod(shape)) * width)


# Recipe, changed tensors of a weight of 128 x 128, what the message says.
DAMAGED = {
    "fp8 one scale": ("fp8-dynamic", {"_scale": float_tensor("BF16", 1)}, "not known here"),
    "fp8 a scalar": ("fp8-dynamic", {"_scale": float_tensor("BF16")}, "not known here"),
    "fp8 one scale in a matrix": ("fp8-dynamic", {"_scale": float_tensor("BF16", 1, 2)}, "not known here"),
    "fp8 a row too few": ("fp8-dynamic", {"_scale": float_tensor("BF16", 127, 1)}, "not known here"),
    "fp8 transposed scales": ("fp8-dynamic", {"_scale": float_tensor("BF16", 1, 128)}, "not known here"),
    "fp8 scales of integers": ("fp8-dynamic", {"_scale": raw("U8", 128, 1)}, "not known here"),
    "fp8 scales of doubles": ("fp8-dynamic", {"_scale": float_tensor("F64", 128, 1)}, "not known here"),
    "fp8 codes E5M2": ("fp8-dynamic", {"": raw("F8_E5M2", 128, 128)}, "not known here"),
    "fp8 codes int8": ("fp8-dynamic", {"": raw("I8", 128, 128)}, "not known here"),
    "fp8 codes bf16": ("fp8-dynamic", {"": float_tensor("BF16", 128, 128)}, "not known here"),
    "fp8 codes flat": ("fp8-dynamic", {"": raw("F8_E4M3", 128 * 128)}, "not known here"),
    "fp8 codes a stack": ("fp8-dynamic", {"": raw("F8_E4M3", 2, 64, 128)}, "not known here"),
    "fp8 nothing": ("fp8-dynamic", {"": raw("F8_E4M3", 0, 128), "_scale": raw("BF16", 0, 1)}, "not known here"),
    "fp8 no columns": ("fp8-dynamic", {"": raw("F8_E4M3", 128, 0)}, "not known here"),
    "fp8 too many blocks": ("fp8-block", {"_scale": float_tensor("BF16", 2, 2)}, "not known here"),
    "fp8 packed as well": ("fp8-dynamic", {"_packed": raw("I32", 128, 16, width=4)}, "is there twice"),
    "int4 plain as well": ("w4a16", {"": float_tensor("BF16", 128, 128)}, "is there twice"),
    "int4 groups of 43": ("w4a16", {"_scale": float_tensor("BF16", 128, 3)}, "not known here"),
    "int4 groups of 16": ("w4a16", {"_scale": float_tensor("BF16", 128, 8)}, "not known here"),
    "int4 no groups": ("w4a16", {"_scale": raw("BF16", 128, 0)}, "not known here"),
    "int4 rows differ": ("w4a16", {"_scale": float_tensor("BF16", 64, 4)}, "is damaged"),
    "int4 a rest of columns": (
        "w4a16",
        {"_packed": raw("I32", 128, 73, width=4), "_scale": float_tensor("BF16", 128, 9)},
        "not known here",
    ),
    "int4 words of bytes": ("w4a16", {"_packed": raw("I8", 128, 16)}, "not known here"),
    "int4 words unsigned": ("w4a16", {"_packed": raw("U32", 128, 16, width=4)}, "not known here"),
    "int4 under a plain name": ("w4a16", {"_packed": None, "": raw("I32", 128, 16, width=4)}, "is damaged"),
    "int4 another shape said": (
        "w4a16",
        {"_shape": ("I64", (2,), np.array([128, 120], "<i8").tobytes())},
        "[128, 128]",
    ),
    "int4 a shape of rows": ("w4a16", {"_shape": ("I64", (1,), np.array([128], "<i8").tobytes())}, "is no shape"),
    "int4 a shape of floats": ("w4a16", {"_shape": float_tensor("F32", 2)}, "is no shape"),
    "int4 a negative shape": ("w4a16", {"_shape": ("I64", (2,), np.array([-1, 128], "<i8").tobytes())}, "[128, 128]"),
    "int4 zero points": ("w4a16", {"_zero_point": raw("I32", 16, 4, width=4)}, "not known here"),
    "int4 columns reordered": ("w4a16", {"_g_idx": raw("I32", 128, width=4)}, "not known here"),
    "mxfp4 rows differ": ("mxfp4", {"_scale": raw("U8", 64, 4)}, "is damaged"),
    "mxfp4 scales of floats": ("mxfp4", {"_scale": float_tensor("BF16", 128, 4)}, "not known here"),
    "nvfp4 two scales": ("nvfp4a16", {"_global_scale": float_tensor("F32", 2)}, "is damaged"),
    "fp8 with a global scale": ("fp8-dynamic", {"_global_scale": float_tensor("F32", 1)}, "is not whole"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_parts_that_do_not_go_together(damage, published):
    name, changes, message = DAMAGED[damage]
    drop = [Q_PROJ + suffix for suffix, one in changes.items() if one is None]
    folder = published(name, {Q_PROJ + suffix: one for suffix, one in changes.items() if one}, drop)
    error = refused(folder)
    assert message in error.what
    assert Q_PROJ in error.what
    result = tq("inspect", "out")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {error.what}\n")


def test_shapes_may_be_32_bit(published):
    sizes = ("I32", (2,), np.array([128, 128], "<i4").tobytes())
    assert contents(published("w4a16", {Q_PROJ + "_shape": sizes})).packed[Q_PROJ].shape == (128, 128)


def test_scales_of_activations_go_with_their_weight(published):
    """Calibrated activations: engines need them, and a decoded weight does not."""
    module = Q_PROJ.removesuffix(".weight")
    folder = published("fp8-dynamic", {module + ".input_scale": float_tensor("BF16", 1)})
    found = contents(folder)
    assert module + ".input_scale" in found.plain_names
    succeed("convert", folder, "free", "-r", "bf16")
    assert not [name for name in tensors_of(Path("free")) if "scale" in name and "router" not in name]


def test_a_scale_of_activations_without_a_weight(published):
    stray = LAYER + "router.proj.input_scale"
    assert f"`{stray}` has no" in refused(published("fp8-dynamic", {stray: float_tensor("BF16", 1)})).what


def test_plain_tensors_are_no_concern_of_the_reader(published):
    """Vision towers have integers and long names of their own."""
    more = {"model.vision_tower.count": raw("I64", 1, width=8), "model.vision_tower.scale": float_tensor("BF16", 4)}
    found = contents(published("w4a16", more))
    assert not set(more) & found.plain_names


PARTS = st.fixed_dictionaries(
    {},
    optional={
        suffix: st.tuples(
            st.sampled_from(["F8_E4M3", "F8_E5M2", "F8_E8M0", "I32", "U8", "BF16", "F16", "F32", "I64"]),
            st.lists(st.integers(0, 40), max_size=3).map(tuple),
        )
        for suffix in ("", "_packed", "_scale", "_shape", "_global_scale")
    },
)
WIDTHS = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I32": 4, "U8": 1, "BF16": 2, "F16": 2, "F32": 4, "I64": 8}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@settings(max_examples=300, deadline=None)
@given(parts=PARTS)
def test_any_parts_are_read_whole_or_refused(parts, scratch):
    """Never another error, and what is read decodes to the shape that it says."""
    tensors = {Q_PROJ + suffix: raw(dtype, *shape, width=WIDTHS[dtype]) for suffix, (dtype, shape) in parts.items()}
    checkpoints.write_file(scratch / "model.safetensors", tensors)
    (scratch / "config.json").write_text('{"quantization_config": {"quant_method": "compressed-tensors"}}')
    storage = LocalFolder(scratch)
    try:
        found = packed_tensors(open_checkpoint(storage), {})
    except InputError as error:
        assert "q_proj" in error.what or "holds no" in error.what
        return
    for packed in found.values():
        assert decode_rows(storage, packed, 0, packed.rows).shape == packed.shape


class TestInspect:
    def test_experts_have_their_roles(self, published):
        published("fp8-dynamic")
        assert succeed("inspect", "out").stdout == SUMMARY

    def test_single_weights_are_shown_as_the_original_s(self, published):
        published("w4a16")
        pattern = "re:.*(0\\.self_attn\\.q_proj|layers\\.1\\.experts\\.3\\.(gate|down)_proj|1\\.router\\.proj)"
        items = json.loads(succeed("inspect", "out", "--tensors", pattern, "--format", "json").stdout)["tensors"]
        assert {(one["name"].removeprefix("model.language_model.layers."), one["role"]) for one in items} == {
            ("0.self_attn.q_proj.weight", "q"),
            ("1.router.proj.weight", "router"),
            ("1.experts.3.gate_proj.weight", "expert_gate"),
            ("1.experts.3.down_proj.weight", "expert_down"),
        }
        assert {tuple(one["shape"]) for one in items} == {(128, 128), (4, 128), (96, 128), (128, 96)}


SUMMARY = """model    out   gemma4   533.19K weights

role         stored as    tensors  weights       size
expert_down  fp8 channel        8   98.30K  100.35 kB
expert_gate  fp8 channel        8   98.30K   99.84 kB
expert_up    fp8 channel        8   98.30K   99.84 kB
gate         fp8 channel        2   40.96K   41.60 kB
up           fp8 channel        2   40.96K   41.60 kB
down         fp8 channel        2   40.96K   41.47 kB
q            fp8 channel        2   32.77K   33.28 kB
o            fp8 channel        2   32.77K   33.28 kB
vision       bf16               3   15.36K   30.72 kB
k            fp8 channel        2   16.38K   16.64 kB
embed        bf16               1    8.19K   16.38 kB
v            fp8 channel        1    8.19K    8.32 kB
router       bf16               4    1.28K    2.56 kB
norm         bf16               7      450      900 B

566.79 kB in 1 shard   8.50 bits per weight
"""


class TestVerify:
    def flip(self, folder: Path, name: str) -> None:
        dtype, shape, data = tensors_of(folder)[name]
        # Signs of every second code: one alone would drown.
        changed = np.frombuffer(data, np.uint8).copy()
        changed[::2] ^= 0x88
        checkpoints.rewrite(folder, {name: (dtype, shape, changed.tobytes())})

    @pytest.mark.parametrize("name", RECIPES)
    def test_published_ones_pass(self, name, published, gemma_folder):
        published(name)
        result = succeed("inspect", "out", "--verify", "--source", gemma_folder, "--all")
        assert "no checksums recorded" in result.stdout
        assert "tensors against the source, all rows" in result.stdout

    @pytest.mark.parametrize("name", RECIPES)
    @pytest.mark.parametrize("weight", [Q_PROJ, EXPERT])
    def test_published_ones_are_compared_with_the_source(self, name, weight, published, gemma_folder):
        folder = published(name)
        self.flip(folder, weight + SUFFIXES[name][0])
        succeed("inspect", "out", "--verify")
        result = tq("inspect", "out", "--verify", "--source", gemma_folder)
        assert result.code == 1
        assert result.stderr.startswith(f"error: `{weight}` does not decode to the source\n")

    @pytest.mark.parametrize("name", RECIPES)
    def test_ours_have_checksums(self, name, folders, here):
        folder = Path(shutil.copytree(folders[name], here / "out"))
        changed = Q_PROJ + SUFFIXES[name][0]
        dtype, shape, data = tensors_of(folder)[changed]
        checkpoints.rewrite(folder, {changed: (dtype, shape, bytes([data[0] ^ 1]) + data[1:])})
        result = tq("inspect", "out", "--verify")
        assert result.code == 1
        assert result.stderr.startswith(f"error: `{changed}` is not what was written\n")
