"""Match packed tensors with the parameters of a model: every pair has a home, every home is filled, shapes agree.

All of it is known from the headers, before a byte of weights is read.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tqcli.checkpoint.header import TensorInfo
from tqcli.errors import InputError
from tqcli.formats.native import PAIRS
from tqcli.formats.native_section import NativeFormat
from tqcli.runtime.headers import Pair
from tqcli.runtime.transformers.config import TqConfig
from tqcli.runtime.transformers.expected import wrong_shape
from tqcli.runtime.transformers.geometry import format_of
from tqcli.runtime.transformers.names import UNSUFFIXED, Names, Target


@dataclass(frozen=True)
class Home:
    """A parameter that is packed on disk, in one pair or, if merged, in one a expert and projection.

    codes_shape, scales_shape: of the tensors as transformers will hand them over.
    """

    name: str
    shape: tuple[int, ...]
    stored_as: NativeFormat
    codes_shape: tuple[int, ...]
    scales_shape: tuple[int, ...]
    is_merged: bool
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Placed:
    """A pair and where it goes. unsuffixed: its name lacks the `.weight` of the parameter's."""

    pair: Pair
    target: Target
    unsuffixed: bool


def place(pairs: Iterable[Pair], names: Names, model_class: str) -> list[Placed]:
    """Where each pair goes. Raises InputError for one that the model neither has nor knows."""
    return [placed for pair in pairs if (placed := _place(pair, names, model_class)) is not None]


def check_plain(tensors: Mapping[str, TensorInfo], names: Names) -> None:
    """Raise InputError for a plain tensor of another shape than the model's. Merged ones are checked once loaded."""
    for name, tensor in tensors.items():
        target = names.target(name)
        if not target.operations and target.name in names and names.shape(target.name) != tensor.shape:
            raise wrong_shape(name, tensor.shape, names.shape(target.name))


def find_homes(placed: Sequence[Placed], shapes: dict[str, tuple[int, ...]], config: TqConfig) -> list[Home]:
    """The packed parameters. shapes: of the model's parameters.

    Raises InputError where shapes disagree, or a merged parameter is not whole.
    """
    by_target = defaultdict(list)
    for entry in placed:
        by_target[entry.target.name].append(entry)
    return [_home(name, entries, shapes.get(name, ()), config) for name, entries in by_target.items()]


def _place(pair: Pair, names: Names, model_class: str) -> Placed | None:
    target = names.target(pair.name)
    if target.name in names:
        return Placed(pair, target, unsuffixed=False)
    suffixed = names.target(pair.name + ".weight")
    if pair.format in UNSUFFIXED and suffixed.name in names:
        return Placed(pair, suffixed, unsuffixed=True)
    if names.is_ignored(target.name):
        return None
    raise InputError(
        f"packed tensor `{pair.name}` has no place in `{model_class}`",
        why=f"the model has no parameter `{target.name}`",
        fix="load it with the class that config.json names, or with another version of transformers",
    )


def _home(name: str, entries: list[Placed], shape: tuple[int, ...], config: TqConfig) -> Home:
    pairs = tuple(entry.pair for entry in entries)
    target = entries[0].target
    if len(shape) < 2:
        raise InputError(f"packed tensor `{pairs[0].name}` belongs to `{name}`, which is not a matrix")
    if not target.keeps_rows:
        kinds = ", ".join(type(operation).__name__ for operation in target.operations)
        raise InputError(f"packed tensor `{pairs[0].name}` cannot be loaded", why=f"it would go through {kinds}")
    formats = {format_of(pair, shape[-1], config) for pair in pairs}
    if len(formats) > 1:
        why = ", ".join(sorted(stored_as.label for stored_as in formats))
        raise InputError(f"the parts of `{name}` are packed in different ways", why=why)
    if target.operations:
        _check_parts(name, pairs, shape, is_merged=target.is_merged)
    elif len(pairs) > 1 or pairs[0].rows != prod(shape[:-1]):
        raise InputError(
            f"packed tensor `{pairs[0].name}` does not fit the model",
            why=f"it has {pairs[0].rows} rows, `{name}` is {list(shape)}",
        )
    codes_shape, scales_shape = _loaded_shapes(pairs, shape, is_merged=target.is_merged)
    return Home(name, shape, formats.pop(), codes_shape, scales_shape, target.is_merged, pairs)


def _loaded_shapes(
    pairs: tuple[Pair, ...], shape: tuple[int, ...], *, is_merged: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes after stacking and concatenating: the first dimension of the disk's matrices is added up."""
    lead = shape[:1] if is_merged else ()
    items = shape[0] if is_merged else 1
    codes_rows = sum(pair.codes.shape[0] for pair in pairs) // items
    rows = sum(pair.rows for pair in pairs) // items
    return (*lead, codes_rows, pairs[0].codes.shape[1]), (*lead, rows, pairs[0].groups)


def _check_parts(name: str, pairs: tuple[Pair, ...], shape: tuple[int, ...], *, is_merged: bool) -> None:
    rows = sum(pair.rows for pair in pairs)
    if is_merged:
        _check_all_items(name, pairs, shape[0])
    if rows != prod(shape[:-1]) or len({pair.codes.shape[1] for pair in pairs}) > 1:
        raise InputError(
            f"`{name}` does not fit the model",
            why=f"its {len(pairs)} packed tensors have {rows} rows, the model wants {list(shape)}",
        )


def _check_all_items(name: str, pairs: tuple[Pair, ...], items: int) -> None:
    """Each projection must be there for each expert: name the first tensor that is not."""
    codes, scales = PAIRS[pairs[0].format]
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for pair in pairs:
        before, number, after = _split_at_item(pair.name)
        found[before, after].add(number)
    for (before, after), numbers in sorted(found.items()):
        lacking = [number for number in range(items) if number not in numbers]
        if lacking:
            missing = f"{before}{lacking[0]}{after}"
            raise InputError(
                f"tensor `{missing}{codes}` is missing",
                why=f"`{name}` is made of {items} of them, and so of `{missing}{scales}`; {len(lacking)} are missing",
            )
        if max(numbers) >= items:
            raise InputError(f"tensor `{before}{max(numbers)}{after}` is one too many", why=f"`{name}` takes {items}")


def _split_at_item(name: str) -> tuple[str, int, str]:
    """`a.experts.7.up_proj.weight` -> `a.experts.`, 7, `.up_proj.weight`: the last number in the name."""
    parts = name.split(".")
    at = max((index for index, part in enumerate(parts) if part.isdecimal()), default=-1)
    if at < 0:
        raise InputError(f"packed tensor `{name}` has no number that tells which part it is")
    return (
        "".join(f"{part}." for part in parts[:at]),
        int(parts[at]),
        "".join(f".{part}" for part in parts[at + 1 :]),
    )
