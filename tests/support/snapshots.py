"""Whole outputs kept as text files. TQ_UPDATE_SNAPSHOTS=1 writes them anew; a change then shows in the diff."""

import os
import re
from pathlib import Path

from support.command import Result, tq

FOLDER = Path(__file__).parents[1] / "cli" / "snapshots"
# What differs from machine to machine.
_FILTERS = (
    (re.compile(r"\([0-9.]+ [kMGT]?B free\)"), "(<size> free)"),
    (re.compile(r"kernels [a-z0-9-]+"), "kernels <backend>"),
    (re.compile(r"([0-9]\.[0-9]{6})[0-9]+"), r"\1..."),
    (re.compile(r"note: (?:no compiled kernels|`TQ_KERNELS=).*\n"), ""),
)


def check(name: str, *arguments: object) -> Result:
    """Run the command and compare exit code, standard output and standard error with the stored text."""
    result = tq(*arguments)
    shown = " ".join(repr(str(one)) if " " in str(one) else str(one) for one in arguments)
    found = f"$ tq {shown}\n[exit {result.code}]\n--- stdout\n{result.stdout}--- stderr\n{result.stderr}"
    for pattern, replacement in _FILTERS:
        found = pattern.sub(replacement, found)
    path = FOLDER / f"{name}.txt"
    if os.environ.get("TQ_UPDATE_SNAPSHOTS"):
        path.write_text(found, encoding="utf-8")
    assert path.exists(), f"no snapshot {path.name}: run with TQ_UPDATE_SNAPSHOTS=1"
    assert found == path.read_text(encoding="utf-8")
    return result
