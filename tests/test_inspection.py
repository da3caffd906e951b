"""What a checkpoint holds, told from headers alone: ours, published ones, plain ones, and hostile ones."""

import json
import shutil
from pathlib import Path

import pytest
from support import checkpoints
from support.command import succeed, tq

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.inspection import compare, summarize


@pytest.fixture(scope="module")
def converted(gemma_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspect") / "out"
    succeed("convert", gemma_folder, folder, "-r", "tq3")
    return folder


def summary(folder: Path):
    return summarize(open_checkpoint(LocalFolder(folder)))


def test_totals_are_the_originals(gemma_folder, converted):
    plain, packed = summary(gemma_folder), summary(converted)
    assert [item.name for item in packed.items] != []
    assert {item.name: item.shape for item in packed.items} == {item.name: item.shape for item in plain.items}
    assert packed.parameters == plain.parameters
    assert packed.nbytes == sum(
        len(data) for _, _, data in checkpoints.read_file(converted / "model.safetensors").values()
    )
    assert packed.tool == "tqcli 0.1.0"
    assert packed.original_model == "gemma"
    assert plain.tool == ""
    assert plain.recipe is None


def test_rows_by_role_add_up(converted):
    found = summary(converted)
    rows = found.by_role()
    assert sum(row.tensors for row in rows) == len(found.items)
    assert sum(row.nbytes for row in rows) == found.nbytes
    assert {row.kind for row in rows if row.role in ("q", "down", "expert_down")} == {"tq3 g128"}
    assert {row.kind for row in rows if row.role in ("embed", "router", "vision", "norm")} == {"bf16"}


def test_names_without_weight_have_their_roles(here, converted):
    tensors = checkpoints.read_file(converted / "model.safetensors")
    renamed = {name.replace(".weight.tq_", ".tq_"): one for name, one in tensors.items()}
    checkpoints.write_checkpoint(here / "published", checkpoints.GEMMA_CONFIG, renamed)
    found = summary(here / "published")
    assert found.tool == "a published TQ3 writer"
    assert {item.role for item in found.items if item.kind == "tq3 g128"} == {
        "q", "k", "v", "o", "gate", "up", "down", "expert_gate+expert_up", "expert_down",
    }  # fmt: skip


@pytest.mark.parametrize("model_type", ["mamba9", "", None, 3, "../base", "base"])
def test_an_unknown_model_type_is_shown_without_roles(here, model_type):
    folder = checkpoints.qwen(here / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    result = succeed("inspect", "model")
    assert "is not known, so no roles are shown" in result.stderr
    assert {item.role for item in summary(folder).items} == {"-"}


class TestDiff:
    def test_alike(self, converted, tmp_path):
        shutil.copytree(converted, tmp_path / "copy")
        result = succeed("inspect", converted, "--diff", tmp_path / "copy", "--format", "json")
        assert json.loads(result.stdout) == {"same": 32, "changed": [], "only_first": [], "only_second": []}

    def test_changed_and_missing(self, gemma_folder, converted, tmp_path):
        other = Path(shutil.copytree(gemma_folder, tmp_path / "other"))
        checkpoints.rewrite(other, {"new": checkpoints.tensor((3,))}, drop=["model.language_model.norm.weight"])
        result = tq("inspect", converted, "--diff", other, "--format", "json")
        assert result.code == 1
        assert result.stderr.startswith("error: the two checkpoints differ")
        data = json.loads(result.stdout)
        assert data["only_first"] == ["model.language_model.norm.weight"]
        assert data["only_second"] == ["new"]
        assert len(data["changed"]) == 17
        assert data["same"] == 14
        assert tq("inspect", converted, "--diff", other, "--format", "quiet").stdout == "19\n"

    def test_another_seed_is_another_checkpoint(self, gemma_folder, converted, tmp_path):
        succeed("convert", gemma_folder, tmp_path / "seven", "-r", "tq3", "--set", "seed=7")
        difference = compare(summary(converted), summary(tmp_path / "seven"))
        assert len(difference.changed) == 17
        experts = next(one for one in difference.changed if one[0].endswith("0.experts.gate_up_proj"))
        assert experts[1:] == ("tq3 g128 [4, 192, 128]", "tq3 g128 seed 7 [4, 192, 128]")


class TestSelection:
    def test_a_glob(self, converted):
        data = json.loads(succeed("inspect", converted, "--tensors", "*.1.mlp.*", "--format", "json").stdout)
        assert [item["name"].rpartition("mlp.")[2] for item in data["tensors"]] == [
            "gate_proj.weight", "up_proj.weight", "down_proj.weight",
        ]  # fmt: skip
        assert all(item["stored_as"] == "tq3 g128" and item["file"] == "model.safetensors" for item in data["tensors"])

    def test_a_regular_expression(self, converted):
        names = succeed("inspect", converted, "--tensors", "re:.*(norm|scalar).*", "--format", "quiet").stdout
        assert len(names.splitlines()) == 7

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [("*.nothing", "pattern `*.nothing` matches no tensor"), ("re:(", "`re:(` is not a regular expression")],
    )
    def test_one_that_finds_nothing(self, converted, pattern, expected):
        result = tq("inspect", converted, "--tensors", pattern)
        assert result.code == 2
        assert result.stderr.startswith(f"error: {expected}\n")

    def test_names(self, gemma_folder, converted):
        originals = checkpoints.read_file(gemma_folder / "model.safetensors")
        for form in ("human", "quiet"):
            assert set(succeed("inspect", converted, "--names", "--format", form).stdout.splitlines()) == set(originals)
        assert set(json.loads(succeed("inspect", converted, "--names", "--format", "json").stdout)["names"]) == set(
            originals
        )


def test_the_recipe_can_be_used_again(gemma_folder, converted, here):
    text = succeed("inspect", converted, "--recipe").stdout
    assert text == (converted / "tq_recipe.toml").read_text()
    Path("again.toml").write_text(text)
    succeed("convert", gemma_folder, "out", "-r", "again.toml")
    result = tq("inspect", gemma_folder, "--recipe")
    assert result.code == 2
    assert "holds no recipe\n  why: tq did not write it" in result.stderr


EVIL = "a\x1b[2J\x1b]0;owned\x07b\r\nerror: c\u202eback\u2028d"


@pytest.fixture
def evil(here) -> Path:
    tensors = {EVIL: checkpoints.tensor((4,)), "model.norm.weight": checkpoints.tensor((4,))}
    config = {"model_type": "llama\x1b[31m", "num_hidden_layers": 1}
    side = {"tq_config.json": json.dumps({"tool": EVIL, "original_model": EVIL, "recipe": {"summary": EVIL}}).encode()}
    return checkpoints.write_checkpoint(here / "model", config, tensors, side_files=side)


@pytest.mark.parametrize(
    "view", [(), ("--names",), ("--tensors", "*"), ("--recipe",), ("--verify",), ("--diff", "other")]
)
@pytest.mark.parametrize("form", ["human", "json", "quiet"])
def test_control_characters_in_names_are_shown_and_never_sent(evil, here, view, form):
    checkpoints.qwen(here / "other")
    result = tq("inspect", "model", *view, "--format", form)
    printed = result.stdout + result.stderr
    assert printed
    assert not set(printed) & set("\x1b\x07\r\u202e\u2028\u0085")
    assert "\nerror: c" not in printed
    if view == ("--names",) and form != "json":
        assert len(result.stdout.splitlines()) == 2
        assert r"a\x1b[2J\x1b]0;owned\x07b\r\nerror: c\u202eback\u2028d" in result.stdout


def test_an_error_about_such_a_name_is_harmless_too(evil):
    (evil / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    (evil / "tq_config.json").unlink()
    checkpoints.rewrite(evil, {EVIL: ("BF16", (1,), b"\xff\xff")})
    result = tq("convert", "model", "out")
    assert result.code == 2
    assert not set(result.stderr) & set("\x1b\x07\r")
    assert result.stderr.splitlines()[0].startswith(r"error: `a\x1b[2J")


class TestUnfinished:
    def test_without_its_config(self, here, converted):
        shutil.copytree(converted, "out")
        Path("out/config.json").unlink()
        Path("out/.tq-journal.jsonl").touch()
        result = tq("inspect", "out")
        assert result.code == 2
        assert result.stderr == (
            "error: `out` is an unfinished conversion\n  fix: the `tq convert` command that began it goes on\n"
        )

    def test_before_its_verification(self, here, converted):
        shutil.copytree(converted, "out")
        Path("out/.tq-journal.jsonl").touch()
        assert "note: `out` was converted but not verified" in succeed("inspect", "out").stderr
