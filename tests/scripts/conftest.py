import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def run_script():
    """Run a Python script of scripts/ and give back its finished process; the caller looks at the exit status."""

    def run(name, *arguments, timeout=300):
        command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture(scope="session")
def tiny_model():
    return ROOT / "tests" / "fixtures" / "tiny_gemma4"
