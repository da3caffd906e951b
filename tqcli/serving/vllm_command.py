"""The `vllm serve` command line, without anything that vLLM would take and then ignore, or that would end badly.

What our plug-in is to do, it learns from the environment. Left out: what is wrong with flags that tq does not know
(`vllm_flags`).
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from tqcli.errors import InputError
from tqcli.runtime.vllm.kv.support import Start, refusal, start
from tqcli.serving.choice import Choice
from tqcli.serving.offload import offload_arguments
from tqcli.serving.subject import Subject
from tqcli.serving.vllm_flags import check_flags

_KEY = "VLLM_API_KEY"
_EAGER = "--enforce-eager"
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_PLUGIN, _PLUGINS = "tq", "VLLM_PLUGINS"
_ACTIVATIONS = "TQ_ACTIVATIONS"


@dataclass(frozen=True)
class Wanted:
    """What the user asked for, engine aside. offload_experts: gigabytes, in main memory. activations: or None."""

    host: str
    port: int
    name: str
    kv: str = "none"
    api_key: str | None = None
    max_model_len: int | None = None
    flags: tuple[str, ...] = ()
    offload_experts: float | None = None
    activations: str | None = None


@dataclass(frozen=True)
class Command:
    """arguments: of `vllm`. environment: what is added to it; the key goes there, where nobody can read it."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def program(self) -> tuple[str, ...]:
        """`vllm` of this very Python."""
        return (sys.executable, "-m", "vllm.entrypoints.cli.main", *self.arguments)

    def adding(self, arguments: Iterable[str]) -> "Command":
        """With more of them."""
        return replace(self, arguments=(*self.arguments, *arguments))

    @property
    def shown_environment(self) -> Mapping[str, str]:
        """Without the key itself, which is no text for screens and logs."""
        return {name: "..." if name == _KEY else value for name, value in self.environment.items()}


def vllm_command(
    subject: Subject, wanted: Wanted, choice: Choice, inherited: Mapping[str, str] | None = None
) -> Command:
    """inherited: the environment that vLLM starts in.

    Raises InputError for a setting that would do nothing, or harm.
    """
    _check_model(subject, choice.device)
    check_flags(subject, wanted.flags, wanted.kv, wanted.offload_experts, choice.device)
    arguments = ["serve", subject.source, "--host", wanted.host, "--port", str(wanted.port)]
    arguments += ["--served-model-name", wanted.name]
    if subject.revision is not None:
        arguments += ["--revision", subject.revision]
    if wanted.max_model_len is not None:
        arguments += ["--max-model-len", str(wanted.max_model_len)]
    cache = _cache(subject, wanted.kv, choice.device)
    arguments += cache.arguments
    if wanted.offload_experts is not None:
        arguments += offload_arguments(subject, wanted.offload_experts, choice.device)
    arguments += _eager(subject, wanted, choice.device)
    key = {} if wanted.api_key is None else {_KEY: wanted.api_key}
    environment = {**key, **cache.environment, **_activations(subject, wanted, choice.device)}
    if subject.is_packed or cache.environment:
        _check_plugin(inherited or {})
    return Command((*arguments, *wanted.flags), environment)


def _cache(subject: Subject, kv: str, device: str) -> Start:
    reason = refusal(subject.text_config, kv, device)
    if reason:
        raise InputError(f"vLLM cannot serve this model with `--kv {kv}`", why=reason, fix="--kv fp8 or none")
    return start(kv, device)


def _eager(subject: Subject, wanted: Wanted, device: str) -> tuple[str, ...]:
    """Packed experts are decoded by what tokens chose, which CUDA graphs cannot record; the plug-in refuses them."""
    is_needed = subject.is_packed and device == "cuda" and _experts(subject.text_config) > 0
    return (_EAGER,) if is_needed and _EAGER not in wanted.flags else ()


def _experts(config: Mapping[str, Any]) -> int:
    found = next((config[key] for key in _EXPERT_COUNTS if key in config), 0)
    return found if isinstance(found, int) else 0


def _activations(subject: Subject, wanted: Wanted, device: str) -> Mapping[str, str]:
    """What tells the plug-in, where there is something to tell."""
    if wanted.activations is None:
        return {}
    if not subject.is_packed or device != "cpu":
        why = "on a GPU they are decoded" if subject.is_packed else f"`{subject.source}` has no packed weights"
        raise InputError(f"`--activations {wanted.activations}` does nothing here", why=why)
    # Here, because it imports torch.
    from tqcli.runtime.products import Activations

    known = get_args(Activations)
    if wanted.activations not in known:
        raise InputError(f"activations are `{wanted.activations}`", fix=" or ".join(known))
    return {_ACTIVATIONS: wanted.activations}


def _check_plugin(inherited: Mapping[str, str]) -> None:
    allowed = inherited.get(_PLUGINS)
    if allowed is not None and _PLUGIN not in allowed.split(","):
        why = f"`{_PLUGINS}={allowed}` keeps out the plug-in of tqcli"
        raise InputError("vLLM would do without what this needs", why=why, fix=f"{_PLUGINS}={allowed},{_PLUGIN}")


def _check_model(subject: Subject, device: str) -> None:
    """Compressed experts that vLLM has no CPU kernel for: it would end with a traceback after loading."""
    config = subject.text_config
    if device != "cpu" or subject.layout != "compressed_tensors" or not _experts(config):
        return
    activation = str(config.get("hidden_activation") or config.get("hidden_act") or "silu")
    why = ""
    if activation != "silu":
        why = f"its CPU kernels for compressed experts know SiLU only, and this model has `{activation}`"
    elif _is_fp8_by_channel(subject.config.get("quantization_config")):
        why = "it has no CPU kernel for FP8 experts with scales by channel"
    if why:
        raise InputError(f"vLLM on CPU cannot serve `{subject.source}`", why=why, fix="--engine cpu")


def _is_fp8_by_channel(section: Any) -> bool:
    groups = section.get("config_groups") if isinstance(section, Mapping) else None
    weights = [group.get("weights") or {} for group in groups.values()] if isinstance(groups, Mapping) else []
    return any(
        one.get("type") == "float" and one.get("num_bits") == 8 and one.get("strategy") == "channel" for one in weights
    )
