"""Compressed checkpoints: convert them, prove that they are right, load them.

    import tqcli                                    # now transformers loads our checkpoints, and the published ones
    model = AutoModelForCausalLM.from_pretrained("folder-or-hub-id")
    model, tokenizer = tqcli.load("folder-or-hub-id")
    config = tqcli.TqConfig(bits=3)                 # compress a plain checkpoint while it is loaded
    cache = tqcli.TurboQuantCache(model.config, "k4v3")   # compress keys and values; or tqcli.load(..., kv="k4v3")

Importing this package imports neither torch nor transformers: it leaves a note for transformers to find us by.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from tqcli.errors import CheckFailed, InputError, MachineError, TqError
from tqcli.runtime.transformers import register

if TYPE_CHECKING:
    from tqcli.kv.cache import TurboQuantCache
    from tqcli.runtime.load import load
    from tqcli.runtime.transformers.config import TqConfig
    from tqcli.runtime.transformers.expert_cache_model import expert_cache_report

from tqcli.version import __version__

__all__ = [
    "CheckFailed", "InputError", "MachineError", "TqConfig", "TqError", "TurboQuantCache", "__version__",
    "expert_cache_report", "load",
]  # fmt: skip

_LAZY = {
    "TqConfig": "tqcli.runtime.transformers.config",
    "TurboQuantCache": "tqcli.kv.cache",
    "expert_cache_report": "tqcli.runtime.transformers.expert_cache_model",
    "load": "tqcli.runtime.load",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module `tqcli` has no attribute `{name}`")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register.install()
