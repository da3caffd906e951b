"""What `tq serve` says of itself: the model, the engine, the memory, the address; for people and as data."""

import shlex
from typing import TYPE_CHECKING

from tqcli.cli.out import Out, shards, size

if TYPE_CHECKING:
    from tqcli.serving.budget import Budget
    from tqcli.serving.choice import Choice
    from tqcli.serving.embedded import Listening
    from tqcli.serving.subject import Subject
    from tqcli.serving.vllm_command import Wanted
    from tqcli.serving.vllm_memory import VllmMemory

_LOCAL = ("127.0.0.1", "::1", "localhost")


def own_command(subject: "Subject", budget: "Budget", listening: "Listening") -> str:
    """The command that does the same with everything said; without the key itself."""
    key = "" if listening.api_key is None else "TQ_API_KEY=... "
    revision = [] if subject.revision is None else ["--revision", subject.revision]
    packed = ["--activations", listening.activations] if subject.is_packed else []
    arguments = [
        "tq", "serve", subject.source, *revision, "--engine", "cpu", "--kv", budget.kv, *packed,
        "--host", listening.host, "--port", str(listening.port), "--served-model-name", *listening.names,
        "--max-model-len", str(budget.context), "--max-waiting", str(listening.max_waiting),
        "--grace", f"{listening.grace:g}",
    ]  # fmt: skip
    return key + shlex.join(arguments)


def print_subject(out: Out, subject: "Subject", choice: "Choice") -> None:
    """Two lines: what is served, and by what."""
    out.line(
        f"model    {subject.source}   {subject.model_type}   {subject.layout}   "
        f"{size(subject.nbytes)} in {shards(subject.shards)}"
    )
    out.line(f"engine   {choice.engine}: {choice.why}")


def print_budget(out: Out, budget: "Budget", listening: "Listening") -> None:
    """What the embedded engine will need."""
    cache = budget.cache
    out.line(f"context  {budget.context} tokens, of prompt and answer together")
    saved = f", {size(cache.full_bytes_per_token)} uncompressed" if budget.kv != "none" else ""
    out.line(f"cache    {budget.kv}: {size(budget.cache_bytes)}, {size(cache.bytes_per_token)} a token{saved}")
    weights = (
        f"decoded weights {size(budget.decoded_bytes)}" if budget.decoded_bytes else "weights stay on disk, mapped"
    )
    if listening.activations != "float":
        out.line(f"weights  multiplied as they are, by activations in {listening.activations}")
    out.line(f"memory   {size(budget.needed)} ({size(budget.available)} free); {weights}")
    if budget.shortened_from:
        out.note(f"note: the model could take {budget.shortened_from} tokens; their cache does not fit in memory")
    if budget.pages_weights:
        out.note("note: the weights do not fit beside it and are read from disk again and again, which is slow")


def print_vllm_memory(out: Out, memory: "VllmMemory", kv: str) -> None:
    """What vLLM gets on a CPU."""
    out.line(f"context  {memory.context} tokens, of prompt and answer together")
    out.line(
        f"cache    {kv}: {size(memory.bytes_per_token)} a token, {size(memory.cache_bytes)} for one such sequence; "
        f"{size(memory.room)} for all"
    )
    out.line(f"memory   weights {size(memory.weights)} ({size(memory.available)} free)")


def warn_open(out: Out, wanted: "Wanted") -> None:
    """Say so where others can reach the server and need no key."""
    if wanted.host not in _LOCAL and wanted.api_key is None:
        out.note(f"note: whoever reaches `{wanted.host}` may use it: there is no `--api-key`")


def url_of(host: str, port: int) -> str:
    """What clients take as their base address."""
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def data_of(choice: "Choice", budget: "Budget", listening: "Listening", line: str) -> dict[str, object]:
    """The same as data. line: the command."""
    return {
        "engine": "cpu",
        "why": choice.why,
        "context": budget.context,
        "kv": budget.kv,
        "activations": listening.activations,
        "cache_bytes": budget.cache_bytes,
        "cache_bytes_per_token": budget.cache.bytes_per_token,
        "memory_needed": budget.needed,
        "memory_available": budget.available,
        "command": line,
    }
