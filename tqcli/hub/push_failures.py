"""What goes wrong while a checkpoint is pushed, in sentences for whoever pushes; reading has its own (`failures`).

All of it is exit code 3: the input was checked before the Hub was asked. Neither tokens nor addresses get into it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import errors

from tqcli.errors import MachineError, TqError
from tqcli.hub.failures import AnswerError, NetworkError, explain, status_of

Result = TypeVar("Result")

# Some of the library's errors have no base in common, and some exist in one of its versions only.
_LIBRARY: tuple[type[Exception], ...] = tuple(
    one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)
)
_FAILURES: tuple[type[Exception], ...] = (AnswerError, NetworkError, OSError, ValueError, RuntimeError, *_LIBRARY)

_LOGIN = "run `hf auth login` with a token that may write, or set HF_TOKEN"
_AGAIN = "run the command again: it goes on, what was uploaded is not sent twice"


@contextmanager
def push_errors(repository: str, revision: str = "main") -> Iterator[None]:
    """Within it, every failure of the Hub and of the network becomes a MachineError."""
    try:
        yield
    except TqError:
        raise
    except _FAILURES as error:
        raise explain_push(error, repository, revision) from error


def unwrapped(call: Callable[[], Result]) -> Result:
    """`call()`. A transfer that failed is reported as a RuntimeError, by Xet too: what is behind it is raised."""
    try:
        return call()
    except RuntimeError as error:
        if isinstance(error.__cause__, (NetworkError, OSError)):
            raise error.__cause__ from error
        raise AnswerError(f"the transfer failed: {error}") from error


def explain_push(error: Exception, repository: str, revision: str) -> MachineError:
    """The MachineError that says what `error` means for someone who wanted to write to `repository`."""
    # Whatever it is, the reason in it is short and has no secrets.
    known = explain(error, repository, revision)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return MachineError("not logged in to the Hub", why="pushing needs a token that may write", fix=_LOGIN)
    if isinstance(error, errors.OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set, so the Hub is not asked"
        return MachineError(f"`{repository}` cannot be pushed to", why=why, fix="unset HF_HUB_OFFLINE")
    if isinstance(error, errors.GatedRepoError):
        return MachineError(known.what, why=known.why, fix=known.fix)
    if isinstance(error, errors.RepositoryNotFoundError):
        why = "there is no such repository, or this login may not see it"
        return MachineError(f"cannot write to `{repository}`", why=why, fix=f"check the name; {_LOGIN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return MachineError(known.what, fix="run the command again")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, known, repository)
    if isinstance(error, (AnswerError, NetworkError)):
        return MachineError("the connection to the Hub broke", why=known.why, fix=_AGAIN)
    if isinstance(error, ValueError):
        return MachineError(f"the Hub does not take what is pushed to `{repository}`", why=known.why)
    return MachineError(f"cannot push to `{repository}`", why=known.why, fix=_AGAIN)


def _refused(error: errors.HfHubHTTPError, known: TqError, repository: str) -> MachineError:
    status = status_of(error)
    if status == 401:
        why = "it is wrong, or has expired; HF_TOKEN goes before `hf auth login`"
        return MachineError("the Hub does not accept the token", why=why, fix=_LOGIN)
    if status in (402, 403):
        return MachineError(f"this login may not write to `{repository}`", why=known.why, fix=_LOGIN)
    if status in (409, 412):
        what = f"`{repository}` changed while it was pushed to"
        return MachineError(what, why=known.why, fix="look at what is there now, then run the command again")
    if status == 429:
        return MachineError("the Hub asks for a pause: too many requests", why=known.why, fix=f"wait, then {_AGAIN}")
    return MachineError(f"the Hub failed at `{repository}`", why=known.why, fix=_AGAIN)
