"""`--offload-experts`: experts in main memory by vLLM's own offloader, and the proof that they are there.

vLLM has taken the flags and done nothing before, so what it logs when it offloads has to come before it is ready
(vLLM 0.32, `model_executor/offloader/uva.py`). Parameters are chosen by whole parts of their names, and `experts` is
part of every routed expert's, plain or quantised (`mlp.experts.routed_experts.w13_weight`).

Left out: an expert cache, which vLLM has none of; the GPU reads what it needs through the bus.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from tqcli.errors import InputError, MachineError
from tqcli.serving.passing import die_of, run_watched
from tqcli.serving.subject import Subject

_GIB = 2**30
_GB = 10**9
# `.2f` of it must not become nothing.
_LEAST = 0.01
_OFFLOADED = re.compile(rb"Total CPU offloaded parameters: [0-9.]+")
# The last line before it listens, from the same logger, so that one cannot be shown without the other.
_READY = re.compile(rb"Starting vLLM (?:API )?server\b")
_LEVELS = ("DEBUG", "INFO")
_FLAGS = ("--cpu-offload-", "--offload-")
_OUR_METHODS = ("turboquant", "tq")
_TOO_LATE = "vLLM sets aside what it offloads before weights are loaded, and packed ones come after that"


def offload_arguments(subject: Subject, gigabytes: float, device: str) -> list[str]:
    """vLLM's flags for so many gigabytes (10^9 bytes) of experts, per GPU.

    Raises InputError where that would do nothing, or less than it says.
    """
    said = f"--offload-experts {gigabytes:g}"
    if not math.isfinite(gigabytes) or gigabytes < _LEAST:
        raise InputError(f"`{said}` is no size", fix=f"gigabytes, {_LEAST} or more")
    check_offloading(subject, said, device)
    if not subject.expert_bytes:
        raise InputError(f"`{said}` does nothing with `{subject.source}`", why="the model has no experts")
    if gigabytes * _GB > subject.expert_bytes:
        most = math.floor(subject.expert_bytes / _GB / _LEAST) * _LEAST
        why = f"the experts of `{subject.source}` have {subject.expert_bytes / _GB:.2f} GB"
        raise InputError(f"`{said}` is more than there is", why=why, fix=f"--offload-experts {most:.2f}, or less")
    # It says GB and means GiB.
    size = f"{gigabytes * _GB / _GIB:.4f}"
    return ["--offload-backend", "uva", "--cpu-offload-gb", size, "--cpu-offload-params", "experts"]


def is_offloading(flag: str) -> bool:
    """Whether it is one of vLLM's own flags for this."""
    return flag.startswith(_FLAGS)


def check_offloading(subject: Subject, said: str, device: str) -> None:
    """Raise InputError for a flag that has weights offloaded where that does nothing. said: the flag."""
    if device == "cpu":
        raise InputError(f"`{said}` does nothing in vLLM on CPU", why="the weights are in main memory already")
    if subject.is_packed:
        raise InputError(f"`{said}` does not work with packed weights in vLLM", why=_TOO_LATE)


def check_not_packed_late(method: str) -> None:
    """Raise InputError where `--quantization` has a plain checkpoint packed while it is loaded."""
    if method in _OUR_METHODS:
        why = f"with `--quantization {method}`, {_TOO_LATE}"
        raise InputError("`--offload-experts` does not work with packed weights in vLLM", why=why)


def check_embedded(gigabytes: float | None) -> None:
    """Raise InputError for experts that the embedded engine is to offload."""
    if gigabytes is not None:
        why = "the weights are in main memory already, mapped from disk"
        raise InputError("`--offload-experts` does nothing in the embedded engine", why=why)


def run_offloading(program: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Run vLLM as if it took this process's place, and stop it should it be ready without having offloaded.

    Raises InputError where its log would not tell, MachineError where it was stopped.
    """
    _check_visible(environment)
    status = run_watched(program, environment, OffloadWatch())
    if status < 0:
        die_of(-status)
    raise SystemExit(status)


def _check_visible(environment: Mapping[str, str]) -> None:
    level = environment.get("VLLM_LOGGING_LEVEL", "INFO")
    hidden = {
        f"VLLM_LOGGING_LEVEL={level}": level.upper() not in _LEVELS,
        "VLLM_CONFIGURE_LOGGING=0": environment.get("VLLM_CONFIGURE_LOGGING") == "0",
        "VLLM_LOGGING_CONFIG_PATH": bool(environment.get("VLLM_LOGGING_CONFIG_PATH")),
    }
    for setting, hides in hidden.items():
        if hides:
            why = f"with `{setting}` vLLM may not log that it offloads, and it has been seen not to"
            raise InputError("`--offload-experts` could not be checked", why=why, fix="unset it")


@dataclass
class OffloadWatch:
    """What vLLM's lines have told so far."""

    offloaded: bool = False
    ready: bool = False

    def see(self, line: bytes) -> None:
        """The next line of either stream."""
        self.offloaded = self.offloaded or _OFFLOADED.search(line) is not None
        self.ready = self.ready or _READY.search(line) is not None

    @property
    def amiss(self) -> bool:
        """Whether it is ready without having said that it offloads."""
        return self.ready and not self.offloaded

    def failure(self) -> MachineError:
        """What to tell then."""
        why = "it is ready and has not logged `Total CPU offloaded parameters`; it was stopped"
        return MachineError(
            "vLLM did not offload the experts", why=why, fix="another version of vLLM, or no offloading"
        )
