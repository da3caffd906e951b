"""The way in: vLLM calls `register` in every process of its own, before it reads a model's configuration.

Registering is cheap and may happen many times. It makes vLLM know the quantisation (under the name that is in the
config.json of our folders, and as `tq`) and the loader. Left out: what they do.
"""

import os
from importlib import import_module

from tqcli.runtime.vllm.settings import KV, check_settings


def register() -> None:
    """Raises InputError for settings in the environment that cannot be taken."""
    check_settings()
    import_module("tqcli.runtime.vllm.ops")
    import_module("tqcli.runtime.vllm.config").register()
    import_module("tqcli.runtime.vllm.loader").register()
    if os.environ.get(KV):
        import_module("tqcli.runtime.vllm.kv.register").register()
