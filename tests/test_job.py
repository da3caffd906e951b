"""What cannot be converted: a clear message, its exit code, and no folder that could be taken for whole."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints
from support.command import hashes, succeed, tq
from support.crash import looks_whole

from tqcli.checkpoint.journal import Journal
from tqcli.checkpoint.writer import ShardWriter

Q_PROJ = "model.language_model.layers.0.self_attn.q_proj.weight"
EXPERTS = "model.language_model.layers.1.experts.down_proj"
NORM = "model.language_model.norm.weight"


@pytest.fixture
def model(here) -> Path:
    return checkpoints.gemma(here / "model")


def refused(code: int, *arguments: object) -> str:
    """The message of a run that must fail and leave nothing that looks finished."""
    result = tq("convert", *arguments)
    assert result.code == code, result.stderr
    for folder in (Path("out"), Path("model")):
        assert folder.name == "model" or not looks_whole(folder)
    lines = result.stderr.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    return "\n".join(lines[first:])


def poison(folder: Path, name: str, element: int, value: float) -> None:
    dtype, shape, data = checkpoints.read_file(folder / "model.safetensors")[name]
    values = np.frombuffer(data, np.uint16).copy()
    values[element] = np.float32(value).view(np.uint32) >> 16
    checkpoints.rewrite(folder, {name: (dtype, shape, values.tobytes())})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "element", "place"),
    [(Q_PROJ, 128 * 77 + 5, "row 77"), (EXPERTS, 96 * 400 + 3, "row 400"), (NORM, 9, "element 9")],
)
def test_a_weight_that_is_not_finite_is_named(model, name, element, place, value):
    poison(model, name, element, value)
    limit = "float32" if name == NORM else "a float32 norm"
    assert refused(2, "model", "out") == (
        f"error: `{name}` is not finite\n"
        f"  why: {place} holds NaN, Inf or a value too large for {limit}\n"
        "  fix: the source is damaged: fetch it again"
    )


def test_a_mended_source_can_be_converted_after_that(model):
    original = Path(shutil.copytree("model", "original"))
    poison(model, NORM, 0, np.nan)
    refused(2, "model", "out")
    shutil.copy(original / "model.safetensors", "model/model.safetensors")
    assert "from a source that changed" in refused(2, "model", "out")
    succeed("convert", "model", "out", "--overwrite")


def edit_config(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "`quantization_config` in config.json: gptq"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` in config.json: unknown method"),
        (
            {"text_config": {"num_hidden_layers": 2, "quantization_config": {"quant_method": "awq"}}},
            "`quantization_config` in config.json: awq",
        ),
    ],
)
def test_a_quantised_source_is_refused_by_its_config(model, keys, why):
    edit_config(model, **keys)
    assert refused(2, "model", "out") == (
        f"error: `model` is compressed already\n  why: {why}\n"
        "  fix: name the original BF16 checkpoint, or --from-quantized"
    )


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("x.tq_packed", ("U8", (4, 48), b"\0" * 192)),
        ("x.tq_norms", ("F32", (1,), b"\0" * 4)),
        ("x.qweight", ("I32", (1,), b"\0" * 4)),
        ("x.weight", ("F8_E4M3", (4,), b"\0" * 4)),
        ("x.blocks", ("F4", (4,), b"\0" * 2)),
    ],
)
def test_a_quantised_source_is_refused_by_its_tensors(model, name, tensor):
    checkpoints.rewrite(model, {name: tensor})
    assert f"why: `{name}` is {tensor[0]}" in refused(2, "model", "out")


def test_our_own_output_is_refused_as_a_source(model):
    succeed("convert", "model", "first")
    assert "`first` is compressed already" in refused(2, "first", "out")


def damage_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def damage_longer(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")


def damage_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def damage_header(folder: Path) -> None:
    checkpoints.rewrite(folder, {NORM: ("BF16", (129,), b"\0" * 256)})


def damage_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gemma4", ')


def damage_layers(folder: Path) -> None:
    edit_config(folder, text_config={})


def damage_model_type(folder: Path) -> None:
    edit_config(folder, model_type="gemma44")


def damage_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_no_tensors(folder: Path) -> None:
    checkpoints.write_file(folder / "model.safetensors", {})


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damage_truncated, "`model.safetensors` is truncated"),
        (damage_longer, "`model.safetensors` is longer than its header says"),
        (damage_empty, "`model.safetensors` is truncated"),
        (damage_header, f"tensor `{NORM}` in `model.safetensors` is not as the format demands"),
        (damage_missing_config, "`model` has no `config.json`"),
        (damage_config, "`config.json` is not valid JSON"),
        (damage_layers, "`config.json` does not say how many layers the model has"),
        (damage_model_type, "unknown architecture `gemma44`; did you mean `gemma4`?"),
        (damage_no_weights, "`model` holds no safetensors files"),
        (damage_no_tensors, "`model` holds no tensors"),
    ],
)
def test_a_damaged_source(model, damage, expected):
    damage(model)
    message = refused(2, "model", "out")
    assert message.splitlines()[0] == f"error: {expected}"
    assert not Path("out").exists()


def test_an_index_that_names_a_missing_shard(here):
    checkpoints.gemma(here / "model", shards=3)
    Path("model/model-00002-of-00003.safetensors").unlink()
    assert "`model` is incomplete: `model-00002-of-00003.safetensors` is missing" in refused(2, "model", "out")


def test_an_index_that_names_a_missing_tensor(here):
    checkpoints.gemma(here / "model", shards=3)
    path = Path("model/model.safetensors.index.json")
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    assert "tensor `ghost` is not in `model-00001-of-00003.safetensors`" in refused(2, "model", "out")


def test_the_same_tensor_in_two_shards(here):
    folder = checkpoints.gemma(here / "model", shards=2, index=False)
    second = checkpoints.read_file(folder / "model-00002-of-00002.safetensors")
    first = checkpoints.read_file(folder / "model-00001-of-00002.safetensors")
    name = next(iter(first))
    checkpoints.write_file(folder / "model-00002-of-00002.safetensors", second | {name: first[name]})
    assert f"tensor `{name}` is there twice" in refused(2, "model", "out")


def test_a_source_that_shrinks_while_it_is_read(model, monkeypatch):
    original = ShardWriter.append

    def append(self, name, piece):
        path = Path("model/model.safetensors")
        os.truncate(path, path.stat().st_size // 2)
        original(self, name, piece)

    monkeypatch.setattr("tqcli.convert.pieces", lambda decision, **_: _small_pieces(decision))
    monkeypatch.setattr(ShardWriter, "append", append)
    assert "model.safetensors" in refused(3, "model", "out", "--workers", 1)


def _small_pieces(decision):
    from tqcli.pieces import pieces

    return pieces(decision, piece_bytes=4096)


def test_a_float16_that_does_not_fit(here):
    checkpoints.gemma(here / "model", dtype="F32")
    checkpoints.rewrite(here / "model", {NORM: ("F32", (2,), np.float32([1.0, 65520.0]).tobytes())})
    assert refused(2, "model", "out", "--set", "keep_dtype=float16") == (
        f"error: `{NORM}` does not fit float16\n  why: a value is above 65504\n  fix: leave `keep_dtype` at `source`"
    )


class TestOutputFolder:
    def test_a_finished_one_is_refused_and_overwritten_on_demand(self, model):
        succeed("convert", "model", "out", "-r", "tq4", "--shard-size", "60KB")
        before = hashes(Path("out"))
        assert refused_whole("model", "out") == (
            "error: `out` holds another converted checkpoint\n  fix: --overwrite, or another folder\n"
        )
        assert hashes(Path("out")) == before
        succeed("convert", "model", "out", "--overwrite")
        succeed("convert", "model", "fresh")
        assert hashes(Path("out")) == hashes(Path("fresh"))

    def test_the_same_conversion_again_is_only_verified(self, model):
        succeed("convert", "model", "out")
        before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
        assert "found    out" in succeed("convert", "model", "out").stdout
        assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before

    @pytest.mark.parametrize("more", [("-r", "tq4"), ("--set", "seed=7"), ("--shard-size", "60KB")])
    def test_another_conversion_is_not_the_same(self, model, more):
        succeed("convert", "model", "out")
        assert "holds another converted checkpoint" in refused_whole("model", "out", *more)

    @pytest.mark.parametrize("name", ["config.json", "tq_config.json", "tq_recipe.toml"])
    def test_one_with_changed_documents_is_not_the_same(self, model, name):
        succeed("convert", "model", "out")
        path = Path("out", name)
        path.write_text(path.read_text().replace("3", "4"))
        assert "holds another converted checkpoint" in refused_whole("model", "out")

    def test_the_same_conversion_damaged_since(self, model):
        succeed("convert", "model", "out")
        shard = Path("out/model.safetensors")
        shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
        result = tq("convert", "model", "out")
        assert result.code == 1
        assert "error: `out` was converted, but is no longer right\n  why: " in result.stderr
        assert "fix: --overwrite" in result.stderr
        assert shard.exists()

    @pytest.mark.parametrize("name", ["notes.txt", "figures/mine.svg", "model-mine.safetensors", ".git/HEAD"])
    @pytest.mark.parametrize("more", [(), ("--overwrite",)])
    def test_one_with_a_strangers_file_is_never_touched(self, model, name, more):
        succeed("convert", "model", "out")
        Path("out", name).parent.mkdir(exist_ok=True)
        Path("out", name).write_text("mine")
        before = hashes(Path("out"))
        assert "`out` holds something else" in refused_whole("model", "out", *more)
        assert hashes(Path("out")) == before

    @pytest.mark.parametrize("more", [(), ("--overwrite",)])
    def test_one_that_another_tool_wrote_is_never_touched(self, model, more):
        Path("out").mkdir()
        for name in ("config.json", "tq_config.json", "model.safetensors"):
            Path("out", name).write_text('{"format": "tq3_native"}')
        before = hashes(Path("out"))
        assert "`out` holds something else" in refused_whole("model", "out", *more)
        assert hashes(Path("out")) == before

    def test_a_link_to_a_folder_is_not_followed(self, model):
        succeed("convert", "model", "out")
        shutil.move("out/figures", "figures")
        Path("out/figures").symlink_to(Path("figures").resolve())
        assert "holds something else" in refused_whole("model", "out", "--overwrite")
        assert Path("figures/loss.svg").exists()

    def test_the_source_itself(self, model):
        before = hashes(model)
        for more in ((), ("--overwrite",)):
            assert "source and output are the same folder" in refused_whole("model", "./model", *more)
        Path("link").symlink_to("model")
        assert "source and output are the same folder" in refused_whole("model", "link")
        assert hashes(model) == before

    def test_inside_the_source(self, model):
        before = hashes(model)
        assert "`model/out` lies inside the source folder" in refused_whole("model", "model/out")
        assert hashes(model) == before

    def test_around_the_source(self, model):
        assert "`.` holds the source" in refused_whole("model", ".", "--overwrite")

    def test_a_file(self, model):
        Path("out").write_text("mine")
        assert "`out` is a file" in refused(2, "model", "out", "--overwrite")
        assert Path("out").read_text() == "mine"

    def test_an_empty_one_is_taken(self, model):
        Path("out").mkdir()
        succeed("convert", "model", "out")

    def test_one_that_is_made_with_its_parents(self, model):
        succeed("convert", "model", "a/b/out")
        assert Path("a/b/out/config.json").exists()

    def test_a_second_process_is_kept_out(self, model):
        Path("out").mkdir()
        with Journal(Path("out")):
            message = refused(3, "model", "out")
        assert message.startswith("error: another process is converting into `out`\n")
        succeed("convert", "model", "out")

    def test_a_second_process_is_kept_out_during_the_verification_too(self, model, monkeypatch):
        import tqcli.job

        original, seen = tqcli.job.verify_folder, []

        def verify(folder, *arguments, **options):
            seen.append(tq("convert", "model", "out", "--overwrite", "-r", "tq2"))
            return original(folder, *arguments, **options)

        monkeypatch.setattr(tqcli.job, "verify_folder", verify)
        succeed("convert", "model", "out")
        assert [result.code for result in seen] == [3]


def refused_whole(*arguments: object) -> str:
    result = tq("convert", *arguments)
    assert result.code == 2
    return result.stderr.partition("error: ")[1] + result.stderr.partition("error: ")[2]


class TestDisk:
    def test_too_small_is_said_before_anything_is_written(self, model, monkeypatch):
        monkeypatch.setattr("tqcli.job.free_disk", lambda folder: 1000)
        message = refused(3, "model", "out")
        assert message.startswith("error: the output does not fit on the disk of `out`\n  why: ")
        assert not Path("out").exists()

    @pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
    @pytest.mark.parametrize("after", [0, 5])
    def test_full_in_the_middle(self, model, monkeypatch, call, after):
        original, count = getattr(os, call), 0

        def full(*arguments):
            nonlocal count
            count += 1
            if count > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

        with monkeypatch.context() as context:
            context.setattr(os, call, full)
            message = refused(3, "model", "out", "--shard-size", "40KB")
        assert message.startswith("error: the disk is full: `out/")
        assert "fix: free some space and run the same command again: finished shards are kept" in message
        assert not list(Path("out").glob("*.safetensors.partial"))
        succeed("convert", "model", "out", "--shard-size", "40KB")
        succeed("convert", "model", "fresh", "--shard-size", "40KB")
        assert hashes(Path("out")) == hashes(Path("fresh"))

    def test_a_limit_on_file_sizes(self, model):
        code = (
            "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY));"
            "from tqcli.cli.main import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "convert", "model", "out"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 3, done.stderr
        assert "error: `out/model.safetensors` cannot be written" in done.stderr
        assert not looks_whole(Path("out"))

    def test_below_a_file(self, model):
        Path("file").touch()
        assert (
            refused(3, "model", "file/out")
            == f"error: `file/out` cannot be written\n  why: `{Path.cwd()}/file` is not a folder"
        )

    def test_without_permission(self, model, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        expected = f"error: `out` cannot be written\n  why: no permission to write into `{Path.cwd()}`"
        assert refused(3, "model", "out") == expected


def test_a_folder_that_fails_its_verification_is_not_left_whole(model, monkeypatch):
    original = ShardWriter.finish

    def flip(self):
        sums = original(self)
        with self._final.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
        return sums

    with monkeypatch.context() as context:
        context.setattr(ShardWriter, "finish", flip)
        message = refused(1, "model", "out")
    assert "is not what was written" in message
    assert "fix: `out` is left unfinished; the same command starts over" in message
    succeed("convert", "model", "out")
    succeed("convert", "model", "fresh")
    assert hashes(Path("out")) == hashes(Path("fresh"))


def test_kernels_that_decode_wrongly_are_found_before_the_work(model, monkeypatch):
    from tqcli.formats.trellis import Trellis

    original = Trellis.decode
    monkeypatch.setattr(Trellis, "decode", lambda self, stored, columns: -original(self, stored, columns))
    assert "does not decode to the source" in refused(1, "model", "out")
    assert not Path("out").exists()


def test_files_that_stay_behind_are_told(model):
    for name in ("pytorch_model.bin", "sub/model.safetensors", "tq_recipe.toml"):
        Path("model", name).parent.mkdir(exist_ok=True)
        Path("model", name).write_bytes(b"x")
    result = succeed("convert", "model", "out")
    assert "note: `pytorch_model.bin` is not copied: weights in another form" in result.stderr
    assert "note: `sub/model.safetensors` is not copied: weights in a subfolder" in result.stderr
    assert "note: `tq_recipe.toml` is not copied: it tells of another conversion" in result.stderr
    assert not Path("out/pytorch_model.bin").exists()
    assert b"group_size" in Path("out/tq_recipe.toml").read_bytes()
