"""Folders to push, converted once and copied for each test, and a Hub to push them to."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants
from support import checkpoints
from support.command import succeed
from support.fake_hub_writes import FakeWritableHub

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


@contextmanager
def writable_hub(folder: Path, token: str | None = "hf_good") -> Iterator[FakeWritableHub]:
    """One that huggingface_hub talks to, logged in as `me` by `token`, without waiting between retries."""
    with FakeWritableHub() as hub, pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        if token:
            patch.setenv("HF_TOKEN", token)
        hub.add_user("me", "hf_good")
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr("tqcli.hub.failures.time.sleep", lambda seconds: None)
        yield hub
