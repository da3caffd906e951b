"""The routes, and what stands before them: the API key, the media type, the model's name."""

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tqcli.server.answering import collect, stream
from tqcli.server.body import read_object
from tqcli.server.errors import ApiError, failed, no_such_model, wrong_key
from tqcli.server.fields import ChatRequest, CompletionRequest, parse_request
from tqcli.server.metrics import CONTENT_TYPE
from tqcli.server.replies import ChatReply, CompletionReply, Reply
from tqcli.server.service import Service

_STOP_SECONDS = 10.0


def make_app(service: Service) -> FastAPI:
    """The application; its engine runs from start-up to shut-down."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await anyio.to_thread.run_sync(service.engine.stop, _STOP_SECONDS)
        service.prompts.close()

    app = FastAPI(lifespan=life, openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(_Routes(service).router())
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _broken)
    return app


class _Routes:
    """One method a route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings

    def router(self) -> APIRouter:
        """All of them."""
        everything = APIRouter()
        everything.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        everything.add_api_route("/metrics", self.metrics, methods=["GET"], response_model=None)
        router = APIRouter(prefix="/v1", dependencies=[Depends(self.check_key)])
        router.add_api_route("/models", self.models, methods=["GET"], response_model=None)
        router.add_api_route("/models/{name:path}", self.model, methods=["GET"], response_model=None)
        router.add_api_route("/chat/completions", self.chat, methods=["POST"], response_model=None)
        router.add_api_route("/completions", self.completions, methods=["POST"], response_model=None)
        everything.include_router(router)
        return everything

    async def check_key(self, request: Request) -> None:
        """Raises ApiError, 401."""
        if self._settings.api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # As bytes: headers were decoded as Latin-1, whatever the client meant.
        same = hmac.compare_digest(key.strip().encode("latin-1"), self._settings.api_key.encode())
        if scheme.lower() != "bearer" or not same:
            raise wrong_key()

    async def health(self) -> Response:
        """200 while requests are answered."""
        return Response(status_code=200 if self._service.engine.healthy else 503)

    async def metrics(self) -> Response:
        """For Prometheus."""
        engine = self._service.engine
        text = self._service.metrics.text(running=engine.running, waiting=engine.waiting)
        return PlainTextResponse(text, headers={"Content-Type": CONTENT_TYPE})

    async def models(self) -> Response:
        """Every name of the one model."""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._settings.names]})

    async def model(self, name: str) -> Response:
        """One name."""
        self._check_model(name)
        return JSONResponse(self._card(name))

    async def chat(self, request: Request) -> Response:
        """A conversation goes on."""
        asked = parse_request(ChatRequest, await _body(request))
        self._check_model(asked.model)
        prompt = await self._service.prompts.of_messages(asked.messages)
        return await self._answer(request, asked, prompt, ChatReply(asked.model, len(prompt), self._service.token_text))

    async def completions(self, request: Request) -> Response:
        """A text goes on."""
        asked = parse_request(CompletionRequest, await _body(request))
        self._check_model(asked.model)
        prompt = await self._service.prompts.of_prompt(asked.prompt)
        reply = CompletionReply(asked.model, len(prompt), self._service.token_text)
        return await self._answer(request, asked, prompt, reply)

    async def _answer(
        self, request: Request, asked: ChatRequest | CompletionRequest, prompt: tuple[int, ...], reply: Reply
    ) -> Response:
        engine = self._service.engine
        client = request.client.host if request.client else ""
        job = engine.submit(self._service.generation(asked, prompt), client)
        if not asked.stream:
            return JSONResponse(await collect(request, engine, job, reply))
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(
            stream(engine, job, reply, with_usage=with_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    def _check_model(self, name: str) -> None:
        if name not in self._settings.names:
            raise no_such_model(name, self._settings.names)

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": self._service.created, "owned_by": "tq",
            "root": self._settings.names[0], "max_model_len": self._settings.max_model_len,
        }  # fmt: skip


async def _body(request: Request) -> dict[str, Any]:
    # A page in a browser may send other types anywhere without asking.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body has to be sent as `Content-Type: application/json`")
    return await read_object(request)


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return JSONResponse(error.body(), error.status, dict(error.headers))


async def _not_found(_: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    if not isinstance(error, HTTPException):
        raise error
    refusal = ApiError(error.status_code, str(error.detail))
    return JSONResponse(refusal.body(), error.status_code, dict(error.headers or {}))


async def _broken(_: Request, __: Exception) -> Response:
    """A bug of ours; the traceback goes to the log."""
    return JSONResponse(failed().body(), 500)
