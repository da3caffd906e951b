"""The body of a request as a JSON object: of bounded size, in bounded time."""

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import Request

from tqcli.server.errors import ApiError, bad_request, too_large

MAX_BODY_BYTES = 4 << 20
_SECONDS = 60.0


async def read_object(request: Request, limit: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """Raises ApiError: 413 for more than `limit` bytes, 408 for one that does not come, 400 for what is no object."""
    try:
        async with asyncio.timeout(_SECONDS):
            raw = await _read(request, limit)
    except TimeoutError as error:
        raise ApiError(408, f"the body did not arrive in {_SECONDS:.0f} s") from error
    return parse(raw)


def parse(raw: bytes) -> dict[str, Any]:
    """Raises ApiError, 400."""
    try:
        # Text first: json would take UTF-16 too.
        found = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
        # Escapes may spell halves of characters, which no tokenizer and no answer could hold.
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise bad_request("the body holds what is not UTF-8") from error
    except RecursionError as error:
        raise bad_request("the body is nested too deeply") from error
    except ValueError as error:
        raise bad_request(f"the body is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise bad_request("the body is not a JSON object")
    return found


async def _read(request: Request, limit: int) -> bytes:
    said = request.headers.get("content-length", "")
    # By length first: a number of thousands of digits is not even read.
    if said.isascii() and said.isdigit() and (len(said) > 18 or int(said) > limit):
        raise too_large(limit)
    pieces: list[bytes] = []
    total = 0
    async for piece in request.stream():
        total += len(piece)
        if total > limit:
            raise too_large(limit)
        pieces.append(piece)
    return b"".join(pieces)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
