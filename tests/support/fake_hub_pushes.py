"""Folders to push: converted once, with a source's card, and copied for each test."""

import json
import shutil
from pathlib import Path

from support import checkpoints
from support.command import succeed

CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# The original\n"


def converted(folder: Path, card: str = CARD, **options: object) -> Path:
    """A small Gemma made into `folder`/out, as if it came from the Hub."""
    model = checkpoints.gemma(folder / "model", **options)
    (model / "README.md").write_text(card)
    succeed("convert", model, folder / "out", "--shard-size", "100KB", "--format", "quiet")
    name_original(folder / "out", "org/model")
    return folder / "out"


def name_original(folder: Path, base: str) -> None:
    """Let the folder's record say that it was made from a model of the Hub."""
    path = folder / "tq_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"original_model": base}))


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to
