"""Arguments and options that several commands share, and how their values are read."""

import re
from pathlib import Path
from typing import Annotated

import typer

from tqcli.cli.out import OutputFormat
from tqcli.errors import InputError

_DECIMAL = {f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))}
_BINARY = {f"{prefix}IB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)}
_UNITS = {"": 1, **_DECIMAL, **_BINARY}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})")

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.", metavar="REV")]
Format = Annotated[OutputFormat, typer.Option("--format", help="How to print the result.")]
Workers = Annotated[int | None, typer.Option(min=1, max=256, help="Threads. [default: processors]", metavar="N")]
Budget = Annotated[
    str | None,
    typer.Option(help="Choose the bits of each role and layer so that the weight files fit.", metavar="SIZE"),
]
BitsPerWeight = Annotated[
    float | None, typer.Option(min=0.1, max=32, help="The same by mean bits of all weights.", metavar="N")
]
Calibrate = Annotated[
    Path | None,
    typer.Option(help="Measure what each layer's bits are worth on this text; runs the original.", metavar="TEXT"),
]
Base = Annotated[
    str | None, typer.Option("--base", help="Model that has the tensors that MODEL lacks.", metavar="MODEL")
]


def parse_size(text: str) -> int:
    """`5GB` -> 5000000000. Raises InputError."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].upper() if match else ""
    if match is None or unit not in _UNITS:
        raise InputError(f"`{text}` is not a size", fix="such as `5GB`, `500MB` or `2GiB`")
    nbytes = int(float(match[1]) * _UNITS[unit])
    if nbytes == 0:
        raise InputError(f"`{text}` is too small")
    return nbytes
