"""The `tq` command inside the test's process: arguments in, exit code and both outputs out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from support.checkpoints import names_of
from typer.testing import CliRunner

from tqcli.cli.main import app


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    stderr: str


def tq(*arguments: object) -> Result:
    result = CliRunner(env={"COLUMNS": "80", "TQ_DEBUG": None}).invoke(app, [str(one) for one in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def succeed(*arguments: object) -> Result:
    result = tq(*arguments)
    assert result.code == 0, result.stderr
    return result


def hashes(folder: Path) -> dict[str, str]:
    """Relative name -> SHA-256 of every file."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names_of(folder)}
