"""`tq serve`: check, say what is started, start it; the embedded engine here, vLLM in this process's place."""

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from tqcli.cli.options import Format, Revision
from tqcli.cli.out import Out, OutputFormat, command
from tqcli.cli.serve_report import (
    data_of,
    own_command,
    print_budget,
    print_subject,
    print_vllm_memory,
    url_of,
    warn_open,
)
from tqcli.errors import InputError

if TYPE_CHECKING:
    from tqcli.serving.choice import Choice, Engine
    from tqcli.serving.subject import Subject
    from tqcli.serving.vllm_command import Command, Wanted
    from tqcli.serving.vllm_memory import VllmMemory

_DEFAULT_WAITING = 64
_DEFAULT_GRACE = 5.0


def serve_command(
    model: Annotated[str, typer.Argument(help="Local folder or Hub id.")],
    vllm_flags: Annotated[list[str] | None, typer.Argument(help="For vLLM, after `--`.", metavar="FLAGS")] = None,
    engine: Annotated[str, typer.Option(help="auto, vllm, or cpu: the embedded one.", metavar="ENGINE")] = "auto",
    kv: Annotated[
        str, typer.Option(help="Key-value cache: k4v3, k8v4, k4v4, ..., fp8 or none.", metavar="TYPE")
    ] = "none",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="TQ_API_KEY", help="What clients have to send.", metavar="KEY")
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="What clients call the model. [default: its folder or id]", metavar="NAME")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompt and answer together.", metavar="N")
    ] = None,
    max_waiting: Annotated[
        int | None, typer.Option(min=0, help="Requests that may wait; engine cpu. [default: 64]", metavar="N")
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0, max=3600, help="For the running answer when stopped; engine cpu. [default: 5]", metavar="S"
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(help="int16, int8 or float: how CPUs multiply packed weights. [default: int16]", metavar="TYPE"),
    ] = None,
    offload_experts: Annotated[
        float | None,
        typer.Option(help="Experts kept in main memory, for each GPU; engine vllm.", metavar="GB"),
    ] = None,
    revision: Revision = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the command that is started, and stop.")] = False,
    output_format: Format = OutputFormat.human,
) -> None:
    """Serve a checkpoint over HTTP, as OpenAI's clients expect it.

    With vLLM where it is installed and there is a GPU, else with the embedded
    engine, which answers one request at a time.

    Examples:

      tq serve out/ --kv k4v3

      tq serve out/ --engine vllm -- --tensor-parallel-size 2
    """
    with command(output_format) as out:
        from tqcli.serving.choice import Engine, choose
        from tqcli.serving.machine import find_vllm
        from tqcli.serving.subject import open_subject
        from tqcli.serving.vllm_command import Wanted, vllm_command

        asked = _engine(engine)
        _check_flags(vllm_flags or [], api_key)
        subject = open_subject(model, revision)
        choice = choose(asked, subject, None if asked is Engine.cpu else find_vllm(), only_print=only_print)
        name = served_model_name or subject.name
        flags = tuple(vllm_flags or ())
        wanted = Wanted(host, port, name, kv, api_key, max_model_len, flags, offload_experts, activations)
        if choice.engine is Engine.vllm:
            _check_embedded_only(("--max-waiting", max_waiting), ("--grace", grace))
            started = vllm_command(subject, wanted, choice, os.environ)
            memory = _plan_vllm(subject, wanted, choice)
            if memory is not None:
                started = started.adding(memory.arguments)
            _run_vllm(out, subject, choice, wanted, started, memory, only_print)
        else:
            _run_embedded(out, subject, choice, wanted, only_print, (max_waiting, grace))


def _engine(name: str) -> "Engine":
    from tqcli.serving.choice import Engine

    try:
        return Engine(name)
    except ValueError as error:
        raise InputError(f"there is no engine `{name}`", fix=", ".join(Engine)) from error


def _check_flags(flags: list[str], api_key: str | None) -> None:
    if api_key is not None and not api_key.strip():
        raise InputError("the API key is empty", fix="a key, or no `--api-key` and no `TQ_API_KEY`")
    if flags and not flags[0].startswith("-"):
        raise InputError(f"what is `{flags[0]}`?", fix="one MODEL; flags for vLLM come after `--`")


def _check_embedded_only(*given: tuple[str, object]) -> None:
    for flag, value in given:
        if value is not None:
            raise InputError(f"`{flag}` does nothing with vLLM", why="it is of the embedded engine")


def _plan_vllm(subject: "Subject", wanted: "Wanted", choice: "Choice") -> "VllmMemory | None":
    """None for a GPU, whose memory vLLM measures itself, and for another machine."""
    from tqcli.serving.machine import available_memory
    from tqcli.serving.vllm_memory import plan_vllm_memory

    if choice.device != "cpu" or not choice.is_here:
        return None
    return plan_vllm_memory(subject, wanted, os.environ, available_memory())


def _run_vllm(
    out: Out,
    subject: "Subject",
    choice: "Choice",
    wanted: "Wanted",
    started: "Command",
    memory: "VllmMemory | None",
    only_print: bool,
) -> None:
    from tqcli.serving.offload import run_offloading

    shown = shlex.join(("vllm", *started.arguments))
    line = "".join(f"{name}={value} " for name, value in started.shown_environment.items()) + shown
    if not only_print:
        print_subject(out, subject, choice)
        if memory is not None:
            print_vllm_memory(out, memory, wanted.kv)
        out.line(f"starts   {line}")
        warn_open(out, wanted)
    elif out.human:
        out.line(line)
    out.result(
        {"engine": "vllm", "device": choice.device, "why": choice.why, "command": ["vllm", *started.arguments]}, line
    )
    if only_print:
        return
    out.flush()
    environment = os.environ | dict(started.environment)
    if wanted.offload_experts is not None:
        run_offloading(started.program, environment)
    # In this process's place, so that signals reach it and its exit status is ours.
    os.execve(started.program[0], started.program, environment)  # noqa: S606


def _run_embedded(
    out: Out,
    subject: "Subject",
    choice: "Choice",
    wanted: "Wanted",
    only_print: bool,
    limits: tuple[int | None, float | None],
) -> None:
    from tqcli.serving import embedded
    from tqcli.serving.offload import check_embedded

    if wanted.flags:
        raise InputError(
            f"`{wanted.flags[0]}` does nothing here",
            why=f"flags after `--` are vLLM's, and the engine is cpu: {choice.why}",
        )
    check_embedded(wanted.offload_experts)
    embedded.check_cache(wanted.kv)
    embedded.check_installed()
    waiting, grace = limits
    listening = embedded.Listening(
        host=wanted.host,
        port=wanted.port,
        names=(wanted.name,),
        api_key=wanted.api_key,
        max_waiting=_DEFAULT_WAITING if waiting is None else waiting,
        grace=_DEFAULT_GRACE if grace is None else grace,
        activations=embedded.choose_activations(subject, wanted.activations),
    )
    budget = embedded.plan(subject, wanted.kv, wanted.max_model_len)
    line = own_command(subject, budget, listening)
    data = data_of(choice, budget, listening, line)
    if only_print:
        out.line(line)
        out.result(data, line)
        return
    print_subject(out, subject, choice)
    print_budget(out, budget, listening)
    warn_open(out, wanted)
    out.flush()

    def ready(port: int) -> None:
        url = url_of(wanted.host, port)
        out.line(f"ready    {url} as `{wanted.name}`; Ctrl-C stops")
        out.result({**data, "url": url}, url)
        out.flush()

    embedded.serve(subject, budget, listening, ready)
