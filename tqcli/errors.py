"""Errors that a person can act on, and their exit codes.

    TqError
      CheckFailed    1   the work ran and the answer is no
      InputError     2   a flag, a recipe or a model that we cannot take
      MachineError   3   disk, memory, GPU, network, the Hub

Anything else that escapes is a bug of ours: exit code 70, with a traceback. Nothing here prints.
"""

from typing import ClassVar


class TqError(Exception):
    """What went wrong, why, and what to do next: one line each, values in backticks."""

    exit_code: ClassVar[int] = 70

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.why, self.fix))


class CheckFailed(TqError):
    """The work ran and the answer is no: a verification failed, a measurement regressed."""

    exit_code = 1


class InputError(TqError):
    """A flag, a recipe, a file or a model that cannot be taken."""

    exit_code = 2


class MachineError(TqError):
    """This machine or the network stands in the way: disk, memory, GPU, permissions, the Hub."""

    exit_code = 3


def _rebuild(kind: type[TqError], what: str, why: str, fix: str) -> TqError:
    return kind(what, why=why, fix=fix)
