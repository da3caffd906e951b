"""MLX folders read: ours and published ones; a folder that contradicts itself is refused, naming what is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints, mlx_models
from support.command import succeed, tq

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError
from tqcli.packed import decode_rows
from tqcli.readers.find import read

EXPERTS = "language_model.model.layers.1.experts.switch_glu.down_proj"
WIDTHS = (2, 3, 4, 5, 6, 8)


def contents(folder):
    with LocalFolder(folder) as storage:
        return read(open_checkpoint(storage))


def write(folder, bits=4, group_size=64, *, rows=(3,), columns=128, section=None, **changed):
    """A folder of one module `m` with random codes. changed: its parts that are something else, None for none."""
    count = columns // group_size
    random = np.random.default_rng(bits)
    words = random.integers(0, 2**32, (*rows, columns * bits // 32), dtype=np.uint32)
    floats = random.standard_normal((2, *rows, count)).astype(np.float32)
    parts = {
        "weight": ("U32", words.shape, words.tobytes()),
        "scales": ("BF16", floats[0].shape, checkpoints.to_bytes(floats[0], "BF16")),
        "biases": ("BF16", floats[1].shape, checkpoints.to_bytes(floats[1], "BF16")),
    }
    parts |= changed
    tensors = {f"m.{name}": part for name, part in parts.items() if part is not None}
    said = {"group_size": group_size, "bits": bits, "mode": "affine"} if section is None else section
    config = {"model_type": "llama", "num_hidden_layers": 1, "quantization": said}
    return checkpoints.write_checkpoint(folder, config, tensors, side_files={})


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return mlx_models.by_hand(tmp_path_factory.mktemp("mlx") / "source", "gemma4", layers=6)


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mlx") / "out"
    succeed("convert", source, folder, "-r", "config-i", "--set", "scale=minmax")
    return folder


@pytest.fixture
def published(converted, tmp_path) -> Path:
    """The same as others publish it: nothing in it is tq's."""
    folder = Path(shutil.copytree(converted, tmp_path / "published"))
    (folder / "tq_config.json").unlink()
    (folder / "tq_recipe.toml").unlink()
    return folder


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_width_of_a_module_follows_from_its_sizes(bits, group_size, tmp_path):
    """Whatever config.json gives as the default, as mlx_lm reads it; a module's own entry must agree."""
    for name, said in (("default", {"bits": 7}), ("own", {"bits": 7, "m": {"bits": bits, "group_size": group_size}})):
        folder = write(tmp_path / name, bits, group_size, rows=(2, 3), section={"group_size": group_size, **said})
        (packed,) = contents(folder).packed.values()
        assert (packed.name, packed.format.bits, packed.format.group_size) == ("m.weight", bits, group_size)
        assert (packed.shape, packed.rows, packed.columns, packed.dtype) == ((2, 3, 128), 6, 128, "BF16")
        tensors = checkpoints.read_file(folder / "model.safetensors")
        with LocalFolder(folder) as storage:
            found = decode_rows(storage, packed, 0, 6)
        assert np.array_equal(found, mlx_models.decode_stored(tensors, "m", group_size))


def test_a_module_may_have_its_own_group_size(tmp_path):
    folder = write(tmp_path / "out", 4, 32, section={"group_size": 64, "bits": 4, "m": {"group_size": 32, "bits": 4}})
    (packed,) = contents(folder).packed.values()
    assert packed.format.group_size == 32
    with pytest.raises(InputError, match="fit no width"):
        contents(write(tmp_path / "other", 4, 32, columns=96, section={"group_size": 128, "bits": 4}))


def words(rows, count):
    return "U32", (rows, count), bytes(4 * rows * count)


def floats(dtype, *shape):
    return dtype, shape, bytes(np.prod(shape, dtype=int) * {"BF16": 2, "F16": 2, "F32": 4, "I64": 8, "U8": 1}[dtype])


WRONG_PARTS = {
    "no scales": ({"scales": None}, "`m.weight` has no `.scales` beside it"),
    "no biases": ({"biases": None}, "`m` is not whole"),
    "no codes": ({"weight": None}, "`m` is not whole"),
    "codes alone": ({"scales": None, "biases": None}, "`m.weight` has no `.scales` beside it"),
    "codes of another type": ({"weight": ("I32", (3, 16), bytes(192))}, "`m` is damaged"),
    "floats for codes": ({"weight": floats("F32", 3, 16)}, "`m` is damaged"),
    "integers for scales": ({"scales": floats("I64", 3, 2)}, "`m` is no affine weight"),
    "bytes for scales": ({"scales": floats("U8", 3, 2)}, "`m` is no affine weight"),
    "integers for biases": ({"biases": floats("I64", 3, 2)}, "`m` is damaged"),
    "two kinds of floats": ({"biases": floats("F16", 3, 2)}, "`m` is damaged"),
    "fewer biases": ({"biases": floats("BF16", 3, 1)}, "`m` is damaged"),
    "rows that differ": ({"weight": words(2, 16)}, "`m` is damaged"),
    "dimensions that differ": ({"weight": ("U32", (1, 3, 16), bytes(192))}, "`m` is no affine weight"),
    "a vector": ({"scales": floats("BF16", 2), "weight": ("U32", (16,), bytes(64))}, "`m` is no affine weight"),
    "one bit": ({"weight": words(3, 4)}, "fit no width"),
    "seven bits": ({"weight": words(3, 28)}, "fit no width"),
    "words that fit no width": ({"weight": words(3, 17)}, "fit no width"),
    "no words": ({"weight": words(3, 0)}, "fit no width"),
    "no groups": ({"scales": floats("BF16", 3, 0)}, "`m` is no affine weight"),
    "no rows": ({"scales": floats("BF16", 0, 2), "weight": words(0, 16)}, "`m` is no affine weight"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_parts_that_do_not_belong_together(changed, message, tmp_path):
    with pytest.raises(InputError, match=message):
        contents(write(tmp_path / "out", **changed))


SIZE = {"group_size": 64}
WRONG_SECTIONS = {
    "another mode": ({**SIZE, "bits": 4, "mode": "mxfp4"}, "is not read here"),
    "a mode that is none": ({**SIZE, "bits": 4, "mode": ["affine"]}, "is not read here"),
    "a module of another mode": ({**SIZE, "m": {**SIZE, "bits": 4, "mode": "nvfp4"}}, "`m` is not read here"),
    "a lie about the width": ({**SIZE, "m": {**SIZE, "bits": 8}}, "`m` is 4-bit"),
    "no width": ({**SIZE, "m": SIZE}, "`m` is 4-bit"),
    "a width in words": ({**SIZE, "m": {**SIZE, "bits": "4"}}, "`m` is 4-bit"),
    "a width with a fraction": ({**SIZE, "m": {**SIZE, "bits": 4.5}}, "`m` is 4-bit"),
    "no group size": ({"bits": 4}, "`m` is no affine weight"),
    "nothing": ({}, "`m` is no affine weight"),
    "groups of 16": ({"group_size": 16}, "`m` is no affine weight"),
    "groups of 0": ({"group_size": 0}, "`m` is no affine weight"),
    "groups below 0": ({"group_size": -64}, "`m` is no affine weight"),
    "a group size in words": ({"group_size": "64"}, "`m` is no affine weight"),
    "a group size that is a list": ({"group_size": [64]}, "`m` is no affine weight"),
    "a group size that is an object": ({"group_size": {"a": 1}}, "`m` is no affine weight"),
    "a group size with a fraction": ({"group_size": 64.0}, "`m` is no affine weight"),
    "a group size that is true": ({"group_size": True}, "`m` is no affine weight"),
    "a group size of its own that is none": ({**SIZE, "m": {"group_size": None, "bits": 4}}, "no affine weight"),
}


@pytest.mark.parametrize(("section", "message"), WRONG_SECTIONS.values(), ids=WRONG_SECTIONS)
def test_a_section_that_contradicts_the_weights(section, message, tmp_path):
    with pytest.raises(InputError, match=message):
        contents(write(tmp_path / "out", section=section))


@pytest.mark.parametrize("own", [True, False, None, 4, "affine", [1]])
def test_an_entry_that_is_no_table_says_nothing(own, tmp_path):
    """mlx_lm writes true and false into some folders."""
    (packed,) = contents(write(tmp_path / "out", section={**SIZE, "bits": 4, "m": own})).packed.values()
    assert packed.format.bits == 4


def test_a_section_that_is_no_table_is_no_mlx(tmp_path):
    folder = write(tmp_path / "out")
    for section in (True, 4, "affine", [], None):
        config = {"model_type": "llama", "num_hidden_layers": 1, "quantization": section}
        (folder / "config.json").write_text(json.dumps(config))
        assert contents(folder).layout == "plain"


@pytest.mark.parametrize("depth", [50, 100_000])
@pytest.mark.parametrize("key", ["m", "group_size", "bits", "mode"])
def test_a_section_that_is_deep(key, depth, tmp_path):
    folder = write(tmp_path / "out")
    said = json.dumps({"model_type": "llama", "num_hidden_layers": 1, "quantization": {"group_size": 64, "x": 1}})
    deep = f'"{key}": ' + '{"a":' * depth + "1" + "}" * depth
    (folder / "config.json").write_text(said.replace('"x": 1', deep))
    result = tq("inspect", folder)
    assert result.code in (0, 2)
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ") == (result.code == 2)
    assert len(result.stderr) < 1000


def test_a_message_does_not_repeat_a_long_value(tmp_path):
    for number, section in enumerate(({"group_size": "x" * 9999}, {**SIZE, "mode": "x" * 9999})):
        with pytest.raises(InputError) as caught:
            contents(write(tmp_path / str(number), section=section))
        assert len(caught.value.what + (caught.value.why or "")) < 300


def test_ours_and_published_hold_the_same(converted, published):
    ours, theirs = contents(converted), contents(published)
    assert ours.layout == theirs.layout == "mlx"
    assert ours.packed == theirs.packed
    assert {packed.format.bits for packed in theirs.packed.values()} == {2, 3, 4, 8}
    assert not theirs.record
    assert theirs.packed[EXPERTS + ".weight"].shape == (4, 128, 64)


def test_a_published_folder_is_inspected(published, here):
    """Roles and sizes need nothing of ours."""
    assert published.parent == here
    assert succeed("inspect", "published").stdout == INSPECTED


INSPECTED = """\
model    published   gemma4   1.34M weights

role         stored as  tensors  weights       size
expert_gate  mlx8 g64         4  131.07K  139.26 kB
expert_up    mlx8 g64         4  131.07K  139.26 kB
expert_down  mlx8 g64         4  131.07K  139.26 kB
gate         mlx8 g64         4   98.30K  104.45 kB
up           mlx8 g64         4   98.30K  104.45 kB
down         mlx8 g64         4   98.30K  104.45 kB
q            mlx8 g64         4   65.54K   69.63 kB
o            mlx8 g64         4   65.54K   69.63 kB
k            mlx8 g64         4   32.77K   34.82 kB
v            mlx8 g64         4   32.77K   34.82 kB
expert_down  mlx3 g64         2   65.54K   28.67 kB
down         mlx3 g64         2   49.15K   21.50 kB
expert_gate  mlx2 g64         2   65.54K   20.48 kB
expert_up    mlx2 g64         2   65.54K   20.48 kB
q            mlx4 g64         2   32.77K   18.43 kB
o            mlx4 g64         2   32.77K   18.43 kB
gate         mlx2 g64         2   49.15K   15.36 kB
up           mlx2 g64         2   49.15K   15.36 kB
k            mlx4 g64         2   16.38K    9.22 kB
v            mlx4 g64         2   16.38K    9.22 kB
embed        mlx8 g64         1    8.19K    8.70 kB
router       bf16            18    3.86K    7.73 kB
norm         bf16            25    1.29K    2.57 kB

1.14 MB in 1 shard   6.78 bits per weight
"""
