"""A folder that is not what it says, or not what the source said, does not pass; the message names the tensor."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints
from support.command import succeed, tq

from tqcli.formats.tq import Tq

Q_PROJ = "model.language_model.layers.0.self_attn.q_proj.weight"
EXPERTS = "model.language_model.layers.1.experts.down_proj"
NORM = "model.language_model.norm.weight"


@pytest.fixture(scope="module")
def converted(gemma_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "out"
    succeed("convert", gemma_folder, folder, "-r", "tq3")
    return folder


@pytest.fixture
def out(converted, here) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(converted, here / "out"))


def check(*more: object):
    return tq("inspect", "out", "--verify", *more)


def failed(code: int, *more: object) -> str:
    result = check(*more)
    assert result.code == code, result.stderr
    return result.stderr


def flip(folder: Path, name: str, byte: int = 0) -> None:
    dtype, shape, data = checkpoints.read_file(folder / "model.safetensors")[name]
    changed = bytearray(data)
    changed[byte] ^= 1
    checkpoints.rewrite(folder, {name: (dtype, shape, bytes(changed))})


def edit(folder: Path, change, name: str = "tq_config.json") -> None:
    path = folder / name
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_good_folder_passes_and_names_the_worst_error(out, gemma_folder):
    result = check("--source", gemma_folder, "--all", "--format", "json")
    assert result.code == 0, result.stderr
    report = json.loads(result.stdout)
    worst = report.pop("worst")
    assert report == {"tensors": 49, "packed": 17, "checksums": 49, "compared": 32, "rows": "all rows"}
    assert 0.02 < worst["error"] < 0.06
    originals = checkpoints.read_file(gemma_folder / "model.safetensors")
    written = checkpoints.read_file(out / "model.safetensors")
    errors = {
        name: relative_error(originals[name], written, name) for name in originals if name + ".tq_packed" in written
    }
    assert worst["tensor"] == max(errors, key=errors.__getitem__)
    assert worst["error"] == pytest.approx(errors[worst["tensor"]], rel=1e-6)


def relative_error(original, written, name) -> float:
    _, shape, data = original
    truth = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(-1, shape[-1])
    codes = np.frombuffer(written[name + ".tq_packed"][2], np.uint8).reshape(written[name + ".tq_packed"][1])
    norms = np.frombuffer(written[name + ".tq_norms"][2], np.float32).reshape(written[name + ".tq_norms"][1])
    found = Tq(bits=3).decode((codes, norms), shape[-1]).astype(np.float64)
    return float(((found - truth) ** 2).sum() / (truth.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("name", [Q_PROJ + ".tq_packed", Q_PROJ + ".tq_norms", EXPERTS + ".tq_packed", NORM])
@pytest.mark.parametrize("byte", [0, -1])
def test_a_flipped_bit_is_found_by_its_checksum(out, name, byte):
    flip(out, name, byte)
    message = failed(1)
    assert message == (
        f"error: `{name}` is not what was written\n  why: its checksum differs, in `model.safetensors`\n"
    )


def test_a_missing_pair(out):
    checkpoints.rewrite(out, {}, drop=[Q_PROJ + ".tq_packed", Q_PROJ + ".tq_norms"])
    assert failed(1).startswith(f"error: `{Q_PROJ}.tq_packed` is missing\n")


def test_half_a_pair(out):
    checkpoints.rewrite(out, {}, drop=[Q_PROJ + ".tq_norms"])
    assert f"`{Q_PROJ}.tq_packed` has no `{Q_PROJ}.tq_norms` beside it" in failed(2)
    checkpoints.rewrite(out, {Q_PROJ + ".tq_norms": ("F32", (128, 1), b"\0" * 512)}, drop=[Q_PROJ + ".tq_packed"])
    assert f"`{Q_PROJ}.tq_norms` has no `{Q_PROJ}.tq_packed` beside it" in failed(2)


def test_an_extra_tensor(out):
    checkpoints.rewrite(out, {"extra": ("F32", (1,), b"\0" * 4)})
    assert failed(1).startswith("error: `extra` is not listed in `tq_config.json`\n")


def test_two_shards_that_changed_their_names(gemma_folder, here):
    succeed("convert", gemma_folder, "out", "-r", "tq3", "--shard-size", "150KB")
    first, second = sorted(Path("out").glob("*.safetensors"))[:2]
    first.rename("spare")
    second.rename(first)
    Path("spare").rename(second)
    assert "the index says" in failed(2)


def test_two_tensors_that_changed_their_places(out):
    """No index, header or size can tell; the checksums do."""
    names = [f"model.language_model.layers.0.mlp.{one}_proj.weight.tq_norms" for one in ("gate", "up")]
    tensors = checkpoints.read_file(out / "model.safetensors")
    checkpoints.rewrite(out, {names[0]: tensors[names[1]], names[1]: tensors[names[0]]})
    assert "is not what was written" in failed(1)


def forge(folder: Path, name: str, stored: checkpoints.Tensor) -> None:
    """Change a tensor and its checksum too: what a writer with a bug would leave."""
    import hashlib

    checkpoints.rewrite(folder, {name: stored})
    base = name.removesuffix(".tq_packed").removesuffix(".tq_norms")

    def change(config):
        config["tensors"][base]["sha256"][name] = hashlib.sha256(stored[2]).hexdigest()

    edit(folder, change)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite(out, value):
    norms = np.full((128, 1), 0.1, np.float32)
    norms[100] = value
    forge(out, Q_PROJ + ".tq_norms", ("F32", (128, 1), norms.tobytes()))
    assert failed(1) == f"error: `{Q_PROJ}.tq_norms` holds NaN or Inf\n  why: element 100, in `model.safetensors`\n"


def test_wrong_values_with_right_checksums_differ_from_the_source(out, gemma_folder):
    forge(out, Q_PROJ + ".tq_norms", ("F32", (128, 1), np.full((128, 1), 3, np.float32).tobytes()))
    assert check().code == 0
    message = failed(1, "--source", gemma_folder)
    assert message.startswith(f"error: `{Q_PROJ}` does not decode to the source\n  why: relative squared error ")


def test_one_wrong_row_is_found_when_all_are_compared(out, gemma_folder):
    _, shape, data = checkpoints.read_file(out / "model.safetensors")[EXPERTS + ".tq_norms"]
    norms = np.frombuffer(data, np.float32).reshape(shape).copy()
    norms[1] *= 30
    forge(out, EXPERTS + ".tq_norms", ("F32", shape, norms.tobytes()))
    assert check("--source", gemma_folder).code == 0
    assert f"`{EXPERTS}` does not decode to the source" in failed(1, "--source", gemma_folder, "--all")


def test_a_kept_tensor_that_differs(out, gemma_folder):
    forge(out, NORM, checkpoints.tensor((128,), "BF16", seed=99))
    assert failed(1, "--source", gemma_folder) == f"error: `{NORM}` differs from the source\n"


def test_another_source(out, here):
    tensors = checkpoints.gemma_tensors()
    tensors[Q_PROJ] = checkpoints.tensor((128, 128), "BF16", seed=1234)
    checkpoints.write_checkpoint(here / "other", checkpoints.GEMMA_CONFIG, tensors)
    assert f"`{Q_PROJ}` does not decode to the source" in failed(1, "--source", "other")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"drop": [NORM]}, f"error: `{NORM}` is not in the source\n"),
        ({"drop": [Q_PROJ]}, f"error: `{Q_PROJ}` is not in the source\n"),
        ({"add": {"more": ("F32", (1,), b"\0" * 4)}}, "error: `more` of the source is missing\n"),
        ({"add": {NORM: checkpoints.tensor((64,))}}, f"error: `{NORM}` has another shape than the source\n"),
        ({"add": {Q_PROJ: checkpoints.tensor((64, 256))}}, f"error: `{Q_PROJ}` has another shape than the source\n"),
    ],
)
def test_a_source_with_other_tensors(out, gemma_folder, here, change, expected):
    shutil.copytree(gemma_folder, here / "other")
    checkpoints.rewrite(here / "other", change.get("add", {}), drop=change.get("drop", ()))
    assert failed(1, "--source", "other") == expected


class TestSideFiles:
    def test_one_that_changed(self, out, gemma_folder):
        (out / "tokenizer.json").write_bytes(b"{}")
        assert failed(1, "--source", gemma_folder) == "error: the file `tokenizer.json` differs from the source's\n"

    def test_one_that_is_gone(self, out):
        (out / "figures" / "loss.svg").unlink()
        assert failed(1).startswith("error: the file `figures/loss.svg` is missing\n")

    def test_a_new_model_card_is_fine(self, out, gemma_folder):
        (out / "README.md").write_text("# Compressed\n")
        assert check("--source", gemma_folder).code == 0


def drop_tensors(config):
    del config["tensors"]


def drop_one(config):
    del config["tensors"][NORM]


def drop_sums(config):
    del config["tensors"][NORM]["sha256"]


def empty_sums(config):
    config["tensors"][Q_PROJ]["sha256"] = {}


def other_sum(config):
    config["tensors"][NORM]["sha256"][NORM] = "0" * 64


def other_seed(config):
    config["tensors"][Q_PROJ]["seed"] = 43


def other_bits(config):
    config["tensors"][Q_PROJ]["bits"] = 4


def other_group(config):
    config["tensors"][Q_PROJ]["group_size"] = 64


def other_shape(config):
    config["tensors"][Q_PROJ]["shape"] = [64, 256]


def newer(config):
    config["format_version"] = 3


def bad_version(config):
    config["format_version"] = "1"


def bad_shape(config):
    config["tensors"][Q_PROJ]["shape"] = [-128, -128]


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        (drop_tensors, 1, "`tq_config.json` lists no tensors"),
        (drop_one, 1, f"`{NORM}` is not listed in `tq_config.json`"),
        (drop_sums, 1, "`tq_config.json` lists a tensor without checksums"),
        (empty_sums, 1, f"`{Q_PROJ}.tq_norms` is not listed in `tq_config.json`"),
        (other_sum, 1, f"`{NORM}` is not what was written"),
        (other_seed, 1, f"`{Q_PROJ}` is not as `config.json` says\n  why: `tq_config.json` says tq3 g128 seed 43"),
        (other_bits, 2, f"`{Q_PROJ}` is 3-bit\n  why: `tq_config.json` says 4"),
        (other_group, 2, f"`{Q_PROJ}` has sizes that fit no width"),
        (other_shape, 2, f"`{Q_PROJ}` is not as large as `tq_config.json` says"),
        (bad_shape, 2, f"`{Q_PROJ}` has no usable shape in `tq_config.json`"),
        (newer, 2, "`out` was written by a newer tq"),
        (bad_version, 2, "`out` was written by a newer tq"),
    ],
)
def test_a_changed_tq_config(out, change, code, expected):
    edit(out, change)
    assert f"error: {expected}" in failed(code)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "a": 2}', "[" * 100_000])
def test_a_tq_config_that_is_no_object(out, text):
    (out / "tq_config.json").write_text(text)
    assert "`tq_config.json`" in failed(2)


def test_a_lost_tq_config(out):
    (out / "tq_config.json").unlink()
    assert failed(1).startswith("error: `tq_config.json` lists no tensors\n")


def test_a_changed_config(out):
    edit(out, lambda config: config["quantization_config"].update(seed=7), "config.json")
    assert "is not as `config.json` says" in failed(1)
    edit(out, lambda config: config["quantization_config"].update(seed=42, tensors={"ghost": {}}), "config.json")
    assert "`config.json` tells of `ghost`" in failed(1)


NATIVE = {"format": "tq3_native", "bits": 3, "group_size": 128, "quantizer_seed": 42, "compressed_layers": 19}


class TestPublished:
    """Folders that other tools wrote: no checksums, no map of tensors, no shapes."""

    @pytest.fixture
    def published(self, gemma_folder, here):
        def write(bits=3, weight=".weight", flat=False, config=None) -> Path:
            tensors = {}
            for name, (dtype, shape, data) in checkpoints.read_file(gemma_folder / "model.safetensors").items():
                if len(shape) < 2 or "embed" in name or "vision" in name:
                    tensors[name] = (dtype, shape, data)
                    continue
                rows = np.frombuffer(data, np.uint16).reshape(-1, shape[-1])
                codes, norms = Tq(bits=bits, scale="norm").encode(rows, "BF16")
                codes = codes.reshape(len(norms), -1) if flat else codes
                base = name.removesuffix(".weight") + (weight if name.endswith(".weight") else "")
                tensors[base + ".tq_packed"] = ("U8", codes.shape, codes.tobytes())
                tensors[base + ".tq_norms"] = ("F32", norms.shape, norms.tobytes())
            side = dict(checkpoints.SIDE_FILES)
            if config is not None:
                side["tq_config.json"] = json.dumps(config).encode()
            return checkpoints.write_checkpoint(here / "out", checkpoints.GEMMA_CONFIG, tensors, side_files=side)

        return write

    @pytest.mark.parametrize("bits", [2, 3, 4])
    @pytest.mark.parametrize("flat", [False, True])
    @pytest.mark.parametrize("weight", [".weight", ""])
    def test_every_generation_passes(self, published, gemma_folder, bits, flat, weight):
        published(bits, weight, flat, NATIVE)
        result = check("--source", gemma_folder, "--all")
        assert result.code == 0, result.stderr
        assert "no checksums recorded" in result.stdout
        assert "32 tensors against the source, all rows" in result.stdout

    def test_without_any_config_of_its_own(self, published, gemma_folder):
        published()
        assert check("--source", gemma_folder).code == 0

    def test_columns_that_the_config_gives(self, published):
        padded = {"model.language_model.layers.0.mlp.down_proj.weight": 160}
        published(config=NATIVE | {"orig_in_dims": padded})
        items = json.loads(succeed("inspect", "out", "--tensors", "*mlp.down_proj", "--format", "json").stdout)
        assert [item["shape"] for item in items["tensors"]] == [[128, 160], [128, 256]]

    def test_a_wrong_value_is_found_with_the_source(self, published, gemma_folder):
        published(config=NATIVE)
        flip(Path("out"), NORM, 1)
        assert check().code == 0
        assert f"`{NORM}` differs from the source" in failed(1, "--source", gemma_folder)

    @pytest.mark.parametrize("group_size", [0, -128, 96, "128", None, 1e2])
    def test_a_group_size_that_cannot_be(self, published, group_size):
        published(config=NATIVE | {"group_size": group_size})
        assert "has sizes that fit no width" in failed(2)

    def test_codes_of_another_shape(self, published):
        published(config=NATIVE)
        _, shape, data = checkpoints.read_file(Path("out/model.safetensors"))[Q_PROJ + ".tq_packed"]
        checkpoints.rewrite(Path("out"), {Q_PROJ + ".tq_packed": ("U8", shape[::-1], data)})
        assert f"`{Q_PROJ}` is no packed tensor" in failed(2)
