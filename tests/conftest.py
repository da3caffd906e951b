"""Checkpoints that many tests read, made once, and a folder to work in."""

from pathlib import Path

import pytest
from support import checkpoints


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory) -> Path:
    """A Gemma-4-like checkpoint in BF16, one shard. Not to be changed."""
    return checkpoints.gemma(tmp_path_factory.mktemp("sources") / "gemma")


@pytest.fixture(scope="session")
def sharded_folder(tmp_path_factory) -> Path:
    """The same in three shards with an index. Not to be changed."""
    return checkpoints.gemma(tmp_path_factory.mktemp("sources") / "sharded", shards=3)


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory) -> Path:
    """A Qwen3-MoE-like checkpoint in F32, experts one by one. Not to be changed."""
    return checkpoints.qwen(tmp_path_factory.mktemp("sources") / "qwen")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder that is the current one, so that messages hold short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
