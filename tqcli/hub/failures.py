"""Turn what huggingface_hub raises into errors that a person can act on; tell which are worth another try.

Neither tokens nor addresses (which may be signed) get into messages.
"""

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import constants, errors

from tqcli.errors import InputError, MachineError, TqError

Result = TypeVar("Result")

# httpx in huggingface_hub 1.x, httpx2 in 2.x: the root of network failures and bad answers alike.
NetworkError: type[Exception] = errors.HfHubHTTPError.__bases__[0]

_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0
_SECRET = re.compile(r"hf_[A-Za-z0-9]{4,}|https?://\S+")
_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_AGAIN = "try again in a while; what is done is kept"


class AnswerError(Exception):
    """The server broke off, or answered with something other than the bytes that were asked for."""


@contextmanager
def hub_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    """Within it, failures of the Hub and of the network become InputError or MachineError."""
    try:
        yield
    except TqError:
        raise
    except (AnswerError, NetworkError, OSError, errors.HFValidationError) as error:
        raise explain(error, repository, revision) from error


def with_retries(call: Callable[[], Result], waits: tuple[float, ...]) -> Result:
    """`call()`, repeated after each of `waits` while it fails for now.

    waits: seconds; longer, within reason, where the server asks for it.
    """
    for wait in waits:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(max(wait, min(_retry_after(error), _LONGEST_WAIT)))
    return call()


def is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
    if isinstance(error, errors.HfHubHTTPError):
        return status_of(error) in _TRANSIENT_STATUS
    return isinstance(error, (AnswerError, NetworkError))


def status_of(error: Exception) -> int | None:
    """The HTTP status behind `error`, if there is one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def explain(error: Exception, repository: str, revision: str | None) -> TqError:
    """The InputError or MachineError that says what `error` means for someone who wanted `repository`."""
    if isinstance(error, errors.HFValidationError):
        return InputError(f"`{repository}` is not a Hub id", fix="Hub ids look like `owner/name`")
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        return InputError(f"`{repository}` is gated", fix=f"accept its terms at {page}, then {_LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"no such model on the Hub: `{repository}`",
            why="or it is private and this login may not see it",
            fix=f"check the name; for a private model {_LOGIN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"`{repository}` has no revision `{revision or 'main'}`", fix="name a branch, tag or commit")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return InputError(f"`{repository}` does not hold that file", why=_said(error))
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, repository)
    return _unreachable(error, repository)


def _refused(error: errors.HfHubHTTPError, repository: str) -> TqError:
    status = status_of(error)
    if status == 401:
        return InputError("the Hub does not accept the token", why=_said(error), fix=_LOGIN)
    if status == 403:
        return InputError(f"this login may not read `{repository}`", why=_said(error), fix=_LOGIN)
    if status == 429:
        return MachineError("the Hub asks for a pause: too many requests", why=_said(error), fix=f"wait, or {_LOGIN}")
    return MachineError(f"the Hub failed at `{repository}`", why=f"status {status}: {_said(error)}", fix=_AGAIN)


def _unreachable(error: Exception, repository: str) -> TqError:
    if isinstance(error, errors.LocalTokenNotFoundError):
        return InputError("not logged in to the Hub", fix=_LOGIN)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _offline(repository)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _missing_copy(error, repository)
    if isinstance(error, AnswerError):
        return MachineError(f"cannot read `{repository}`", why=_clean(str(error)), fix=_AGAIN)
    if isinstance(error, NetworkError):
        return MachineError("cannot reach the Hub", why=_reason(error), fix="check the network and HF_ENDPOINT")
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "make room, or move the cache with HF_HOME" if full else ""
    return MachineError(f"cannot fetch `{repository}`", why=_reason(error), fix=fix)


def _missing_copy(error: Exception, repository: str) -> MachineError:
    if not constants.is_offline_mode():
        return MachineError(f"cannot fetch `{repository}`", why="the Hub cannot be reached", fix=_AGAIN)
    partial = getattr(error, "snapshot_path", None)
    if partial is None:
        return _offline(repository)
    return MachineError(
        f"the local cache holds `{repository}` only in part",
        why="HF_HUB_OFFLINE is set, so the rest cannot be fetched",
        fix=f"unset HF_HUB_OFFLINE, or name the folder `{partial}`",
    )


def _offline(repository: str) -> MachineError:
    return MachineError(
        f"`{repository}` is not in the local cache",
        why="HF_HUB_OFFLINE is set, so the Hub is not asked",
        fix="unset HF_HUB_OFFLINE, or name a folder",
    )


def _said(error: Any) -> str:
    return _clean(error.server_message or "the server gave no reason")


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _clean(text or type(error).__name__)


def _clean(text: str) -> str:
    return _SECRET.sub("...", " ".join(text.split()))[:300]


def _retry_after(error: Exception) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    value = headers.get("retry-after", "")
    return float(value) if value.isdecimal() and len(value) < 6 else 0.0
