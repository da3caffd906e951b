"""What a compressed cache is asked for: widths of keys and values, and what stays in full precision.

The text form (`k4v3`) is read here and nowhere else. Left out: which layers a model has (`shapes`).
"""

import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from tqcli.errors import InputError

MIN_BITS, MAX_BITS = 2, 8
ScaleKind = Literal["length", "least-squares"]
SCALES: tuple[ScaleKind, ...] = get_args(ScaleKind)
_TEXT = re.compile(r"k(\d+)v(\d+)")


@dataclass(frozen=True)
class Widths:
    """Bits of a number in the keys and in the values, each from 2 to 8."""

    keys: int
    values: int

    def __post_init__(self) -> None:
        for bits in (self.keys, self.values):
            if not MIN_BITS <= bits <= MAX_BITS:
                raise InputError(
                    f"a key-value cache cannot have {bits} bits",
                    why=f"keys and values take {MIN_BITS} to {MAX_BITS} bits each",
                    fix="k4v3, or none for full precision",
                )

    def __str__(self) -> str:
        return f"k{self.keys}v{self.values}"


def parse_widths(text: str) -> Widths | None:
    """The widths that `k4v3` and the like stand for; None for `none`, full precision. Raises InputError otherwise."""
    if not isinstance(text, str):
        raise InputError(f"`{text!r}` is no key-value cache", fix="text such as k4v3, or none")
    if text == "none":
        return None
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InputError(
            f"`{text}` is no key-value cache",
            why="it is written as the bits of keys and values, such as k4v3",
            fix="k8v8, k8v4, k4v4, k4v3, k3v3, or none",
        )
    return Widths(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class CacheSettings:
    """One cache. widths: None leaves every layer as transformers makes it.

    sink_tokens: the first tokens of the sequence, kept in full precision. residual_tokens: the newest tokens, kept in
    full precision; None for all of them. block_tokens: tokens leave the residual window that many at a time.
    boundary_layers: so many first and so many last layers of the model take boundary_widths, None for full precision.
    sliding: whether layers of a sliding window are compressed too. seed: of the rotation's signs. scale: what the
    number stored with each block of codes reproduces, the block's `length` or the `least-squares` fit.
    Raises InputError for what makes no sense.
    """

    widths: Widths | None
    sink_tokens: int = 4
    residual_tokens: int | None = 128
    block_tokens: int = 32
    boundary_layers: int = 0
    boundary_widths: Widths | None = None
    sliding: bool = False
    seed: int = 0
    scale: ScaleKind = "length"

    def __post_init__(self) -> None:
        counts = {
            "sink_tokens": (self.sink_tokens, 0),
            "residual_tokens": (self.residual_tokens, 0),
            "block_tokens": (self.block_tokens, 1),
            "boundary_layers": (self.boundary_layers, 0),
            "seed": (self.seed, 0),
        }
        for name, (value, least) in counts.items():
            if value is not None and (not isinstance(value, int) or value < least):
                raise InputError(f"`{name}` cannot be {value!r}", why=f"it is a whole number from {least} on")
        if self.scale not in SCALES:
            raise InputError(f"`scale` cannot be {self.scale!r}", fix=" or ".join(SCALES))

    def widths_of(self, layer: int, layers: int) -> Widths | None:
        """The widths of one of a model's layers; None where it stays in full precision."""
        if self.widths is None or self.residual_tokens is None:
            return None
        is_boundary = min(layer, layers - 1 - layer) < self.boundary_layers
        return self.boundary_widths if is_boundary else self.widths

    @property
    def exact_tokens(self) -> int:
        """The most tokens of a full-attention layer that are in full precision at a time, `residual_tokens` given."""
        return self.sink_tokens + (self.residual_tokens or 0) + self.block_tokens - 1

    def packed_tokens(self, seen: int, sinks: int) -> int:
        """How many of `seen` tokens have left the residual window for good, when the first `sinks` never do."""
        if self.residual_tokens is None:
            return 0
        beyond = seen - sinks - self.residual_tokens
        return max(beyond, 0) // self.block_tokens * self.block_tokens


def read_settings(kv: "str | CacheSettings", **options: Any) -> CacheSettings:
    """Settings from their text form and options, which are the fields of `CacheSettings` by name.

    `boundary_kv` is the text form of boundary_widths; residual_tokens may be math.inf. Settings are handed back.
    Raises InputError for what cannot be.
    """
    if isinstance(kv, CacheSettings):
        if options:
            raise InputError("a cache has settings or options, not both", fix="dataclasses.replace(settings, ...)")
        return kv
    if "boundary_kv" in options:
        options["boundary_widths"] = parse_widths(options.pop("boundary_kv"))
    if options.get("residual_tokens") == math.inf:
        options["residual_tokens"] = None
    known = {field.name for field in fields(CacheSettings)} - {"widths"}
    for name in options:
        if name not in known:
            raise InputError(f"a key-value cache has no option `{name}`", fix=", ".join(sorted(known)))
    return CacheSettings(parse_widths(kv), **options)
