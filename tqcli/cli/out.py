"""Everything that tq prints. Data goes to standard output; progress, notes and errors go to standard error.

Three forms: `human`, `json` (one object on standard output) and `quiet` (the one value that a script wants). All is
readable without colour. Names come from files that strangers wrote, so control characters are shown, never sent.
"""

import json
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import typer

from tqcli.errors import MachineError, TqError

_GAP = "  "
INTERNAL_ERROR = 70
INTERRUPTED = 130


class OutputFormat(StrEnum):
    """How results are printed."""

    human = "human"
    json = "json"
    quiet = "quiet"


def printable(text: str) -> str:
    """Text with every control character spelled out, line breaks too: safe to send to a terminal, and one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _say(text: str) -> None:
    """To standard output. A reader that has seen enough, such as `head`, stops the printing but not the work."""
    with _standard_output():
        print(text)


@contextmanager
def _standard_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # What is still to come goes nowhere; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise MachineError("standard output cannot be written", why=str(error)) from error


class Out:
    """One command's output."""

    def __init__(self, form: OutputFormat) -> None:
        self.form = form

    @property
    def human(self) -> bool:
        """Whether a person reads."""
        return self.form is OutputFormat.human

    def line(self, text: str = "") -> None:
        """A line of a human result."""
        if self.human:
            _say(printable(text).rstrip())

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
        """A human table. `right`: the columns that are numbers. The last column wraps at the terminal's width."""
        if not self.human:
            return
        cells = [[printable(cell) for cell in row] for row in (header, *rows)]
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        last = len(header) - 1
        indent = sum(widths[:last]) + len(_GAP) * last
        for row in cells:
            aligned = [
                cell.rjust(width) if i in right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines = [aligned[last]] if last in right else _wrap(row[last], _width() - indent)
            _say(_GAP.join([*aligned[:last], *lines[:1]]).rstrip())
            for line in lines[1:]:
                _say(" " * indent + line)

    def result(self, data: Mapping[str, Any], *quiet: str) -> None:
        """The result for machines: an object, or the one value, or the list of values, a line each."""
        if self.form is OutputFormat.json:
            _say(json.dumps(data, indent=2))
        elif self.form is OutputFormat.quiet:
            for value in quiet:
                _say(printable(value))

    def flush(self) -> None:
        """What was printed goes out now: before another program takes over, or a long wait."""
        _flush()

    def note(self, text: str) -> None:
        """Something worth knowing, on standard error."""
        if self.form is not OutputFormat.quiet:
            print(printable(text), file=sys.stderr)

    def error(self, error: TqError) -> None:
        """What, why, fix; on standard error in every form."""
        print("error: " + printable(error.what), file=sys.stderr)
        for label, text in (("why", error.why), ("fix", error.fix)):
            if text:
                print(f"  {label}: {printable(text)}", file=sys.stderr)


@contextmanager
def command(form: OutputFormat, kept: str = "") -> Iterator[Out]:
    """Run a command's body and turn what it raises into a message and an exit code.

    kept: what a person should know after Ctrl-C.
    """
    out = Out(form)
    try:
        yield out
        _flush()
    except TqError as error:
        if os.environ.get("TQ_DEBUG") == "1":
            traceback.print_exc()
        _flush()
        out.error(error)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        print(f"\ninterrupted{': ' + kept if kept else ''}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from error
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        traceback.print_exc()
        print("error: this is a bug in tq; please report it with the lines above", file=sys.stderr)
        raise typer.Exit(INTERNAL_ERROR) from error


def _wrap(text: str, width: int) -> list[str]:
    """Broken at spaces only, so that a name can be copied."""
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


def _flush() -> None:
    """What was printed goes out now, so that a reader that left does not spoil the exit code later."""
    with _standard_output():
        sys.stdout.flush()


def _width() -> int:
    return shutil.get_terminal_size((80, 24)).columns


def size(nbytes: float) -> str:
    """Bytes for people, in powers of ten: `12.33 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"


def count(number: float) -> str:
    """A number of weights for people: `25.81B`, `2.50M`."""
    for unit in ("", "K", "M"):
        if abs(number) < 1000:
            return f"{number:.0f}" if not unit else f"{number:.2f}{unit}"
        number /= 1000
    return f"{number:.2f}B"


def shards(number: int) -> str:
    """`1 shard`, `13 shards`."""
    return f"{number} shard{'' if number == 1 else 's'}"
