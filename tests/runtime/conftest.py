"""Tiny models, built once a session, and their packed twins."""

from pathlib import Path

import pytest
import torch
from support import pack, tiny_models

import tqcli  # noqa: F401  # registers with transformers


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    folders = {}
    for name, build in tiny_models.BUILDERS.items():
        folders[name] = root / name
        folders[name].mkdir()
        build(folders[name])
    return folders


@pytest.fixture(scope="session")
def ours(sources, tmp_path_factory) -> dict[str, Path]:
    """Packed as the converter does it."""
    root = tmp_path_factory.mktemp("ours")
    return {
        name: pack.write(
            source,
            root / name,
            pack.pack_tensors(source),
            section=pack.our_section(),
            tq_config=pack.published_tq_config(),
        )
        for name, source in sources.items()
    }


@pytest.fixture(scope="session")
def published(sources, tmp_path_factory) -> dict[str, Path]:
    """As the published checkpoints: routers and vision packed too, the rest FP16, no quantization_config."""
    root = tmp_path_factory.mktemp("published")
    return {
        name: pack.write(
            source,
            root / name,
            pack.pack_tensors(source, packs=pack.is_packed_by_the_peer, kept_dtype=torch.float16),
            tq_config=pack.published_tq_config(),
        )
        for name, source in sources.items()
    }


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    return torch.tensor([[2, *range(20, 60)], [2, *range(300, 260, -1)]])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
