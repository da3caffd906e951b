"""Which engine: vLLM where there is one with a GPU that can read the folder, the embedded one elsewhere."""

from dataclasses import dataclass
from enum import StrEnum

from tqcli.errors import InputError, MachineError
from tqcli.serving.machine import Vllm
from tqcli.serving.subject import Subject

_UNREADABLE = {"hlwq": "HLWQ folders", "mlx": "MLX folders"}
# Of vLLM, for our plug-in: what it needs of it came with this one.
_LEAST = (0, 32)
_USE_CPU = "--engine cpu"


class Engine(StrEnum):
    """What the user may ask for."""

    auto = "auto"
    vllm = "vllm"
    cpu = "cpu"


@dataclass(frozen=True)
class Choice:
    """engine: vllm or cpu, with the reason in a few words. device: what vLLM would run on.

    is_here: False where a command is only printed, for another machine.
    """

    engine: Engine
    why: str
    device: str = "cpu"
    is_here: bool = True


def choose(asked: Engine, subject: Subject, vllm: Vllm | None, *, only_print: bool = False) -> Choice:
    """only_print: the command may be for another machine, so vLLM need not be here.

    Raises InputError where vLLM was asked for and cannot serve this, MachineError where it is not there.
    """
    unreadable = _unreadable(subject, vllm)
    if asked is Engine.vllm:
        if unreadable:
            raise InputError(f"vLLM cannot serve `{subject.source}`", why=unreadable, fix=_USE_CPU)
        if vllm is None and not only_print:
            fix = f'`pip install "tqcli[vllm]"`, or {_USE_CPU}'
            raise MachineError("vLLM cannot be started", why="it is not installed in this Python", fix=fix)
        return Choice(Engine.vllm, "asked for", vllm.device if vllm else "cpu", is_here=vllm is not None)
    if asked is Engine.cpu:
        return Choice(Engine.cpu, "asked for")
    if vllm is None:
        return Choice(Engine.cpu, "vLLM is not installed here")
    if vllm.device != "cuda":
        return Choice(Engine.cpu, "no GPU that vLLM could use")
    if unreadable:
        return Choice(Engine.cpu, unreadable)
    return Choice(Engine.vllm, f"vLLM {vllm.version} and a GPU are here", vllm.device)


def _unreadable(subject: Subject, vllm: Vllm | None) -> str:
    what = _UNREADABLE.get(subject.layout)
    if what:
        return f"vLLM cannot read {what}"
    if subject.is_packed and vllm is not None and vllm.release < _LEAST:
        return f"the native formats need vLLM {'.'.join(map(str, _LEAST))} or newer, and this is {vllm.version}"
    return ""
