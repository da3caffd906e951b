"""Refusals as OpenAI clients read them: a status, and one object that says what is wrong with which field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INVALID = "invalid_request_error"


@dataclass
class ApiError(Exception):
    """status: of HTTP. message: one or two sentences. parameter: the field of the body that it is about.

    kind and code: `type` and `code` of OpenAI's error object. headers: sent with the answer.
    """

    status: int
    message: str
    parameter: str | None = None
    kind: str = INVALID
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.code},
        }


def bad_request(message: str, parameter: str | None = None) -> ApiError:
    """400."""
    return ApiError(400, message, parameter)


def wrong_key() -> ApiError:
    """401."""
    message = "a valid API key is needed: `Authorization: Bearer KEY`"
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def no_such_model(name: str, served: tuple[str, ...]) -> ApiError:
    """404."""
    shown = ", ".join(f"`{one}`" for one in served)
    return ApiError(404, f"no model `{name[:200]}` is served here; there is {shown}", "model", code="model_not_found")


def too_large(limit: int) -> ApiError:
    """413."""
    return ApiError(413, f"the body is larger than {limit} bytes", code="request_too_large")


def queue_full(waiting: int, seconds: int) -> ApiError:
    """429. seconds: when to try again."""
    message = f"{waiting} requests are waiting already; try again in {seconds} s"
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers={"Retry-After": str(seconds)})


def failed() -> ApiError:
    """500: what happened is in the server's log, not in the answer."""
    return ApiError(500, "the server failed to answer this request; its log says why", kind="server_error")


def stopping() -> ApiError:
    """503."""
    return ApiError(503, "the server is shutting down", kind="server_error", code="shutting_down")
