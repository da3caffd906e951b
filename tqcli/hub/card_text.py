"""Text from outside made safe to stand in a model card: inline code, table cells, fences that their content cannot end.

Markdown is read by people and shown as HTML by the Hub, so nothing that a stranger wrote may become markup.
"""

from collections.abc import Sequence

_MAX_CODE = 300


def code(text: str, limit: int = _MAX_CODE) -> str:
    """Inline code of one line, without anything that could end it, a table's cell included."""
    plain = "".join(c if c.isprintable() else " " for c in text[:limit])
    # Inside code a pipe still ends a cell, and a backtick the code.
    return f"`{plain.replace('`', chr(39)).replace('|', '/').strip() or '-'}`"


def fence(text: str, language: str = "") -> str:
    """A block of code, between fences longer than any in it."""
    lines = ["".join(c if c.isprintable() or c == "\t" else " " for c in line) for line in text.split("\n")]
    marks = "```"
    while any(marks in line for line in lines):
        marks += "`"
    return "\n".join([f"{marks}{language}", *lines, marks])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table of cells that are safe already. right: the columns that are numbers."""
    marks = ["--:" if i in right else "---" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, marks, *rows))


def size(nbytes: float) -> str:
    """Bytes in powers of ten: `12.33 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"
