"""The embedded engine, from a checkpoint to a process that serves it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqcli.errors import InputError, MachineError
from tqcli.serving.budget import Budget, plan_memory
from tqcli.serving.machine import available_memory
from tqcli.serving.model_config import transformers_config
from tqcli.serving.subject import Subject


@dataclass(frozen=True)
class Listening:
    """Where, and with which limits: see `tqcli.server.service.Settings`. activations: as in `tqcli.load`."""

    host: str
    port: int
    names: tuple[str, ...]
    api_key: str | None
    max_waiting: int
    grace: float
    activations: str


def check_cache(kv: str) -> None:
    """Raises InputError for a cache that this engine does not have."""
    from tqcli.kv.settings import parse_widths

    if kv == "fp8":
        raise InputError("the embedded engine has no FP8 cache", fix="--kv k8v8, k8v4, k4v4, k4v3 or none")
    parse_widths(kv)


def choose_activations(subject: Subject, asked: str | None) -> str:
    """int16 where there are packed weights and kernels for it, unless asked for otherwise.

    Raises InputError for integers where they would do nothing or cannot be, and for an unknown word.
    """
    from tqcli.runtime.transformers.activations import check_activations

    if asked is not None:
        check_activations(asked)
        if asked != "float" and not subject.is_packed:
            why = f"`{subject.source}` has no weights that stay packed in memory"
            raise InputError(f"`--activations {asked}` does nothing here", why=why)
        return asked
    if not subject.is_packed:
        return "float"
    try:
        check_activations("int16")
    except InputError:
        # Without compiled kernels there is one way only.
        return "float"
    return "int16"


def check_installed() -> None:
    """Raises MachineError where the server's packages are missing."""
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        why = f"`{'` and `'.join(missing)}` cannot be imported"
        raise MachineError("the embedded server is not installed", why=why, fix='`pip install "tqcli[serve]"`')


def plan(subject: Subject, kv: str, max_model_len: int | None) -> Budget:
    """Raises InputError and MachineError as `plan_memory` does."""
    config = transformers_config(subject)
    if config is None:
        what = f"the embedded engine cannot serve a `{subject.model_type}` model"
        raise InputError(what, why="transformers does not know it")
    return plan_memory(subject, config, kv, max_model_len, available_memory())


def serve(subject: Subject, budget: Budget, listening: Listening, on_ready: Callable[[int], None]) -> None:
    """Load, serve until a signal comes. on_ready: called with the port once requests are taken."""
    from tqcli.server.run import bind, orderly_exit, run
    from tqcli.server.service import Settings, make_service

    settings = Settings(
        names=listening.names,
        max_model_len=budget.context,
        api_key=listening.api_key,
        max_waiting=listening.max_waiting,
        grace=listening.grace,
    )
    with orderly_exit(), bind(listening.host, listening.port) as bound:
        model, tokenizer = _load(subject, listening.activations)
        service = make_service(model, tokenizer, _caches(model, budget.kv), settings)
        run(service, bound, lambda: on_ready(bound.getsockname()[1]))


def _load(subject: Subject, activations: Any) -> tuple[Any, Any]:
    from transformers import logging

    from tqcli.runtime.load import load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    return load(subject.source, subject.revision, activations=activations)


def _caches(model: Any, kv: str) -> Callable[[], Any]:
    """An empty cache, again and again. The first is made now, so that one that cannot be is told before serving."""
    from transformers import DynamicCache

    from tqcli.kv.cache import TurboQuantCache

    def new() -> Any:
        return DynamicCache(config=model.config) if kv == "none" else TurboQuantCache(model.config, kv)

    new()
    return new
