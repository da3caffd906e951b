"""`tq push` as a person sees it, at 80 columns."""

import shutil
from pathlib import Path

import pytest
from support import checkpoints
from support.command import succeed
from support.fake_hub_pushes import CARD, name_original
from support.snapshots import check


@pytest.fixture
def out(here) -> Path:
    checkpoints.gemma(here / "model")
    (here / "model" / "README.md").write_text(CARD)
    succeed("convert", "model", "out")
    name_original(here / "out", "org/model")
    return here / "out"


def test_help():
    assert max(map(len, check("push-help", "push", "--help").stdout.splitlines())) <= 80


def test_dry_run(out):
    check("push-dry-run", "push", "out", "me/name", "--dry-run")
    check("push-dry-run-quiet", "push", "out", "me/name", "--dry-run", "--format", "quiet")


def test_refusals(out, here):
    shutil.copytree(out, here / "local")
    name_original(here / "local", "model")
    shutil.copytree(out, here / "begun")
    (here / "begun" / ".tq-journal.jsonl").write_text("")
    shutil.copytree(out, here / "unlicensed")
    (here / "unlicensed" / "README.md").write_text("# x\n")
    for name, arguments in {
        "push-not-compressed": ("model", "me/name"),
        "push-unfinished": ("begun", "me/name"),
        "push-nowhere": ("nowhere", "me/name"),
        "push-name": ("out", "name"),
        "push-branch": ("out", "me/name", "--revision", "a b"),
        "push-pull-request": ("out", "me/name", "--create-pr", "--revision", "tq3"),
        "push-base-unknown": ("local", "me/name", "--dry-run"),
        "push-base-itself": ("out", "org/model", "--dry-run"),
        "push-licence-unknown": ("unlicensed", "me/name", "--base", "none", "--dry-run"),
        "push-licence-another": ("out", "me/name", "--license", "mit", "--dry-run"),
    }.items():
        assert check(name, "push", *arguments).code == 2
