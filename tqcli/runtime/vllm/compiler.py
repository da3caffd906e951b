"""What vLLM's cache of compiled graphs must know: what packed weights mean is constant in a graph, and in no file name.

The cache goes by the model's configuration. Packed while it is loaded, one model has many; an old graph would decode
new codes by old formats, without a word.
"""

from hashlib import sha256
from typing import Any

from torch import nn

from tqcli.errors import InputError
from tqcli.runtime.vllm.settings import Settings

_KEY = "tqcli"


def tell_compiler(vllm_config: Any, model: nn.Module, settings: Settings) -> None:
    """Put a digest of all formats where vLLM's hash of its configuration sees it.

    Raises InputError where another plug-in's own object is in that place.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, dict):
        raise InputError("packed weights need `--additional-config` to be an object", why=type(additional).__name__)
    additional[_KEY] = digest(model, settings)


def digest(model: nn.Module, settings: Settings) -> str:
    """Of what is constant in the model's compiled graphs."""
    found = sha256(settings.activations.encode())
    for name, module in model.named_modules():
        specs = getattr(module, "tq_specs", ())
        found.update(repr((name, specs)).encode() if specs else b"")
    return found.hexdigest()
