"""Killed at any step on the disk and run again, a conversion ends with the bytes of one that was never interrupted."""

import json
import os
import shutil
from pathlib import Path

import pytest
from support import checkpoints
from support.command import hashes, succeed, tq
from support.crash import kill_at, looks_whole, steps_of

JOURNAL = ".tq-journal.jsonl"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Few tensors, so that every step can be tried; side files, one of them in a subfolder."""
    tensors = {
        "model.embed_tokens.weight": checkpoints.tensor((32, 128)),
        "model.layers.0.self_attn.q_proj.weight": checkpoints.tensor((64, 128), seed=1),
        "model.layers.0.input_layernorm.weight": checkpoints.tensor((128,), seed=2),
    }
    side = {"tokenizer.json": b"{}", "sub/notes.txt": b"notes"}
    config = {"model_type": "llama", "num_hidden_layers": 1}
    return checkpoints.write_checkpoint(tmp_path_factory.mktemp("small") / "model", config, tensors, side_files=side)


def arguments(source: Path, output: Path, *more: object) -> tuple[object, ...]:
    return ("convert", source, output, "--shard-size", "6KB", "--workers", 1, *more)


# A prime stride tries each kind of step; the slow run tries them all.
STRIDES = [11, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("stride", STRIDES)
def test_every_step_of_a_conversion_may_be_the_last(small, tmp_path, stride):
    whole = tmp_path / "whole"
    steps = steps_of(*arguments(small, whole))
    expected = hashes(whole)
    assert steps > 40, "the hook sees too little"
    assert len([name for name in expected if name.endswith(".safetensors")]) == 2
    for step in range(0, steps, stride):
        output = tmp_path / "out"
        kill_at(step, *arguments(small, output))
        if output.exists() and looks_whole(output):
            assert hashes(output) == expected, f"killed at step {step}, it looks whole"
        succeed(*arguments(small, output))
        assert hashes(output) == expected, f"killed at step {step}"
        shutil.rmtree(output)


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("recipe", ["fp8-dynamic", "mlx-4bit", "hlwq-q5", "nvfp4a16"])
def test_every_layout_goes_on_from_every_step(small, tmp_path, recipe, stride):
    whole = tmp_path / "whole"
    steps = steps_of(*arguments(small, whole, "--recipe", recipe))
    expected = hashes(whole)
    for step in range(0, steps, stride):
        output = tmp_path / "out"
        kill_at(step, *arguments(small, output, "--recipe", recipe))
        if output.exists() and looks_whole(output):
            assert hashes(output) == expected, f"killed at step {step}, it looks whole"
        succeed(*arguments(small, output, "--recipe", recipe))
        assert hashes(output) == expected, f"killed at step {step}"
        shutil.rmtree(output)


@pytest.mark.parametrize("recipe", ["fp8-dynamic", "mlx-4bit", "hlwq-q5", "bf16"])
def test_a_finished_folder_of_any_layout_is_verified_and_overwritten(small, tmp_path, recipe):
    output = tmp_path / "out"
    succeed(*arguments(small, output, "--recipe", recipe))
    expected = hashes(output)
    assert "found    " in succeed(*arguments(small, output, "--recipe", recipe)).stdout
    assert "another converted checkpoint" in tq(*arguments(small, output)).stderr
    succeed(*arguments(small, output, "--overwrite"))
    succeed(*arguments(small, output, "--recipe", recipe, "--overwrite"))
    assert hashes(output) == expected


@pytest.mark.parametrize("stride", STRIDES)
def test_every_step_of_an_overwrite_may_be_the_last(small, tmp_path, stride):
    before = tmp_path / "before"
    old_side = small.parent / "old"
    if not old_side.exists():
        shutil.copytree(small, old_side)
        (old_side / "other").mkdir()
        (old_side / "other" / "vocab.txt").write_text("old")
    succeed(*arguments(old_side, before, "--recipe", "tq2"))
    old = hashes(before)
    fresh = tmp_path / "fresh"
    succeed(*arguments(small, fresh))
    expected = hashes(fresh)
    trial = tmp_path / "trial"
    shutil.copytree(before, trial)
    steps = steps_of(*arguments(small, trial, "--overwrite"))
    assert hashes(trial) == expected
    for step in range(0, steps, stride):
        output = tmp_path / "out"
        shutil.copytree(before, output)
        kill_at(step, *arguments(small, output, "--overwrite"))
        if looks_whole(output):
            assert hashes(output) in (old, expected), f"killed at step {step}, it looks whole"
        succeed(*arguments(small, output, "--overwrite"))
        assert hashes(output) == expected, f"killed at step {step}"
        shutil.rmtree(output)


@pytest.fixture(scope="module")
def begun_once(small, tmp_path_factory):
    """A run killed after its first shard was noted, and the hashes of a whole one."""
    folder = tmp_path_factory.mktemp("begun")
    steps = steps_of(*arguments(small, folder / "whole"))
    for step in range(steps // 4, steps):
        kill_at(step, *arguments(small, folder / "out"))
        if _noted(folder / "out") == 1:
            return folder / "out", hashes(folder / "whole")
        shutil.rmtree(folder / "out", ignore_errors=True)
    raise AssertionError("no step leaves one shard noted")


@pytest.fixture
def begun(begun_once, tmp_path):
    """A copy of it, to be changed."""
    output, expected = begun_once
    shutil.copytree(output, tmp_path / "out")
    return tmp_path / "out", expected


def _noted(output: Path) -> int:
    journal = output / JOURNAL
    return max(0, journal.read_text().count("\n") - 1) if journal.exists() else 0


def test_a_finished_shard_is_not_written_again(small, begun):
    output, _ = begun
    shard = output / "model-00001-of-00002.safetensors"
    before = shard.stat().st_mtime_ns
    result = succeed(*arguments(small, output))
    assert shard.stat().st_mtime_ns == before
    assert "kept from before" in result.stderr


@pytest.mark.parametrize("damage", ["deleted", "cut", "longer", "header"])
def test_a_noted_shard_that_is_not_there_any_more_is_written_again(small, begun, damage):
    output, expected = begun
    shard = output / "model-00001-of-00002.safetensors"
    raw = shard.read_bytes()
    if damage == "deleted":
        shard.unlink()
    else:
        shard.write_bytes({"cut": raw[:-1], "longer": raw + b"x", "header": b"\0" + raw[1:]}[damage])
    succeed(*arguments(small, output))
    assert hashes(output) == expected


def test_a_noted_shard_with_other_bytes_fails_and_then_starts_over(small, begun):
    output, expected = begun
    shard = output / "model-00001-of-00002.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    result = tq(*arguments(small, output))
    assert result.code == 1
    assert "model.embed_tokens.weight" in result.stderr
    assert not (output / "config.json").exists()
    succeed(*arguments(small, output))
    assert hashes(output) == expected


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_of_the_journal_is_done_again(small, begun, cut):
    output, expected = begun
    journal = output / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-cut])
    succeed(*arguments(small, output))
    assert hashes(output) == expected


@pytest.mark.parametrize("garbage", [b"\0" * 100, b"\xff\xfe{", b"[1]\n", b'{"shard": 3}\n', b"[" * 100_000 + b"\n"])
def test_garbage_after_the_journal_is_nothing(small, begun, garbage):
    output, expected = begun
    with (output / JOURNAL).open("ab") as journal:
        journal.write(garbage)
    succeed(*arguments(small, output))
    assert hashes(output) == expected


def test_a_journal_that_holds_nothing_readable_starts_over(small, begun):
    output, expected = begun
    (output / JOURNAL).write_bytes(b"\xff\xff\n\xff\n")
    succeed(*arguments(small, output))
    assert hashes(output) == expected


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--set", "bits=4"), "begun with another recipe\n  why: bits was 3, is now 4\n"),
        (("--recipe", "tq2t"), 'bits was 3, is now 2; summary was "3-bit trellis; embeddings and head 8-bit", is now'),
        (("--set", "protect=[]"), 'protect was ["router", "vision", "audio"], is now []'),
        (("--shard-size", "100B"), "begun with another shard size\n  why: 2 shards were begun, now they would be 3"),
    ],
)
def test_another_wish_in_a_begun_folder_is_refused(small, begun, more, expected):
    output, _ = begun
    before = hashes(output)
    result = tq(*arguments(small, output, *more))
    assert result.code == 2
    assert expected in result.stderr
    assert "fix: --overwrite, or another folder" in result.stderr
    assert hashes(output) == before


def test_another_source_in_a_begun_folder_is_refused(small, begun, tmp_path):
    output, _ = begun
    other = tmp_path / "another"
    shutil.copytree(small, other)
    result = tq(*arguments(other, output))
    assert result.code == 2
    assert 'begun from another source\n  why: model was "model", is now "another"' in result.stderr


def test_a_source_that_changed_between_runs_is_refused(tmp_path, small, begun):
    output, expected = begun
    changed = tmp_path / "sources" / "model"
    shutil.copytree(small, changed)
    checkpoints.rewrite(changed, {"model.layers.0.self_attn.q_proj.weight": checkpoints.tensor((64, 128), seed=9)})
    result = tq(*arguments(changed, output))
    assert result.code == 2
    assert "begun from a source that changed" in result.stderr
    succeed(*arguments(changed, output, "--overwrite"))
    assert hashes(output).keys() == expected.keys()
    assert hashes(output) != expected


def test_another_version_of_tq_does_not_go_on(small, begun):
    output, _ = begun
    journal = output / JOURNAL
    first, *rest = journal.read_text().split("\n")
    first = json.dumps(json.loads(first) | {"tool": "tqcli 0.0.1"})
    journal.write_text("\n".join([first, *rest]))
    result = tq(*arguments(small, output))
    assert result.code == 2
    assert 'tool was "tqcli 0.0.1", is now' in result.stderr


def test_a_side_file_that_changed_is_copied_anew(small, begun, tmp_path):
    output, _ = begun
    (output / "tokenizer.json").write_bytes(b"[]")
    succeed(*arguments(small, output))
    assert (output / "tokenizer.json").read_bytes() == b"{}"
