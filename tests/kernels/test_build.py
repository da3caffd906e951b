"""The build hook: a wheel with compiled kernels where there is a compiler, a pure one where there is none."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what a wheel is made of, with a library left over from an older build."""
    copy = tmp_path / "project"
    copy.mkdir()
    for folder in ("tqcli", "kernels", "configs"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "configs").mkdir(exist_ok=True)
    for name in ("README.md", "LICENSE"):
        (copy / name).write_text("for the build\n")
    (copy / "kernels" / "tq_kernels" / "_cpu.so").write_bytes(b"left over")
    return copy


def _wheel(project: Path, **environment: str) -> tuple[Path, str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out"]
    done = subprocess.run(
        command, cwd=project, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )
    (wheel,) = (project / "out").glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.mark.parametrize("compiler", ["/bin/false", "no-such-compiler"])
def test_without_a_compiler(project, compiler):
    wheel, output = _wheel(project, CXX=compiler)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "without compiled kernels" in output
    names = zipfile.ZipFile(wheel).namelist()
    assert "tq_kernels/reference.py" in names
    assert not [name for name in names if name.endswith(".so")]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_with_a_compiler(project, tmp_path):
    wheel, _ = _wheel(project)
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    program = "import tq_kernels; print(tq_kernels.backend().name)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "TQ_KERNELS": ""}
    command = [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}; {program}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.strip().startswith("cpu-")
