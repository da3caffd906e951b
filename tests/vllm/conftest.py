"""Tiny models, their packed twins and what those decode to; each made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny_models
from support.command import succeed

from tqcli.quality.decoded import write_decoded

GEMMA4 = Path(__file__).resolve().parents[1] / "fixtures" / "tiny_gemma4"
Convert = Callable[[str, str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vllm")
    found = {"gemma4": GEMMA4}
    for name in ("qwen3", "qwen3_moe"):
        found[name] = root / name
        found[name].mkdir()
        tiny_models.BUILDERS[name](found[name])
    return found


@pytest.fixture(scope="session")
def convert(sources, tmp_path_factory) -> Convert:
    """Model and recipe -> the converted folder, and the folder of what it decodes to."""
    root = tmp_path_factory.mktemp("converted")

    def converted(model: str, recipe: str) -> tuple[Path, Path]:
        folder, decoded = root / f"{model}-{recipe}", root / f"{model}-{recipe}-decoded"
        if not folder.exists():
            succeed("convert", sources[model], folder, "-r", recipe)
            write_decoded(folder, decoded)
        return folder, decoded

    return converted
