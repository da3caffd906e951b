"""Memory for a context: what weights and cache take in the embedded engine, and how long a context may be."""

from dataclasses import dataclass
from typing import Any

from tqcli.errors import InputError, MachineError
from tqcli.kv.budget import CacheBudget, cache_budget
from tqcli.serving.subject import Subject

# Activations of a piece of the prompt, decoded tiles of weights, Python itself.
WORKING_BYTES = 500_000_000
_UNKNOWN_CONTEXT = 4096


@dataclass(frozen=True)
class Budget:
    """For one sequence of `context` tokens. shortened_from: what the model could do, where memory does not suffice."""

    context: int
    kv: str
    cache: CacheBudget
    decoded_bytes: int
    mapped_bytes: int
    available: int
    shortened_from: int | None = None

    @property
    def cache_bytes(self) -> int:
        """Keys and values of the whole context."""
        return self.cache.nbytes(self.context)

    @property
    def needed(self) -> int:
        """Bytes that have to be there at once."""
        return WORKING_BYTES + self.decoded_bytes + self.cache_bytes

    @property
    def pages_weights(self) -> bool:
        """Whether mapped weights do not all stay in memory, and are read from disk again and again."""
        return self.needed + self.mapped_bytes > self.available


def plan_memory(subject: Subject, config: Any, kv: str, max_model_len: int | None, available: int) -> Budget:
    """config: of transformers. max_model_len: asked for, or None for the model's own and what fits.

    Raises InputError for a context that the model does not have, MachineError for one that does not fit in memory.
    """
    own = _own_context(config)
    if max_model_len is not None and own is not None and max_model_len > own:
        raise InputError(f"`--max-model-len {max_model_len}` is too long", why=f"the model was made for {own} tokens")
    wanted = max_model_len or own_context(config)
    cache = cache_budget(config, kv)
    mapped = subject.nbytes if subject.decoded_bytes == 0 else 0
    room = available - WORKING_BYTES - subject.decoded_bytes
    context = wanted if cache.nbytes(wanted) <= room else _longest(cache, room, wanted)
    if context == 0 or (max_model_len is not None and context < max_model_len):
        raise _too_little(subject, cache.nbytes(wanted), wanted, context, available)
    shortened = wanted if context < wanted else None
    return Budget(context, kv, cache, subject.decoded_bytes, mapped, available, shortened)


def own_context(config: Any) -> int:
    """Tokens that the model was made for, or a modest number where nothing tells."""
    return _own_context(config) or _UNKNOWN_CONTEXT


def _own_context(config: Any) -> int | None:
    found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(found) if found else None


def _longest(cache: CacheBudget, room: int, most: int) -> int:
    """The longest context whose cache fits; 0 where none of use does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cache.nbytes(middle) <= room else (low, middle - 1)
    return low if low >= min(most, 256) else 0


def _too_little(subject: Subject, cache_bytes: int, wanted: int, context: int, available: int) -> MachineError:
    decoded = f"decoded weights {gigabytes(subject.decoded_bytes)}, " if subject.decoded_bytes else ""
    why = (
        f"{decoded}the cache of {wanted} tokens {gigabytes(cache_bytes)}, work {gigabytes(WORKING_BYTES)}; "
        f"{gigabytes(available)} are free"
    )
    fix = f"--max-model-len {context}, or --kv k4v3" if context else "a machine with more memory"
    return MachineError(f"`{subject.source}` does not fit in memory", why=why, fix=fix)


def gigabytes(nbytes: int) -> str:
    """For messages."""
    return f"{nbytes / 1e9:.2f} GB"
