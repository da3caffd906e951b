"""What the environment asks for: the variable `TQ_KV`, such as `k4v3`.

vLLM's own option for the type of the cache knows no types but its own, and plug-ins are loaded in each of its
processes, which all inherit the environment.
"""

import os

from tqcli.errors import InputError
from tqcli.kv.settings import CacheSettings, parse_widths

VARIABLE = "TQ_KV"


def asked_settings() -> CacheSettings | None:
    """Settings whose widths are those of `TQ_KV`; None where it is not set, or `none`. Raises InputError otherwise.

    No token stays in full precision: a paged cache has one form for all of them.
    """
    text = os.environ.get(VARIABLE, "none")
    try:
        widths = parse_widths(text)
    except InputError as error:
        raise InputError(f"`{VARIABLE}={text}` is no key-value cache", why=error.why, fix=error.fix) from error
    if widths is None:
        return None
    return CacheSettings(widths, sink_tokens=0, residual_tokens=0, block_tokens=1, sliding=True)
