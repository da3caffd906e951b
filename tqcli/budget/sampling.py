"""What each width costs: the relative squared error of a group's weights, measured on a sample with the real encoder.

A sample is some rows from evenly spaced places; of many experts, some. The same rows whatever the thread count, and
sums in one fixed order, so that the same source gives the same numbers. Left out: what an error does to the model's
answers (`sensitivity`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tq_kernels.floats import widen
from tq_kernels.types import NonFiniteWeight

from tqcli.architectures.base import Role
from tqcli.budget.candidates import Group
from tqcli.checkpoint.storage import Storage
from tqcli.codec.floats import is_float_dtype
from tqcli.errors import InputError
from tqcli.formats.base import Format
from tqcli.weights import Weight, read_elements

# Of each role in each layer. An error of so many weights is known to about a hundredth of itself.
_WEIGHTS = 1 << 17
_PLACES = 4
_EXPERTS = 16
# Far finer than the measurement, and coarse enough that no rounding of float64 is left in it.
_DIGITS = 6

# Roles of one tensor -> relative squared error, one entry for each candidate of the group.
Errors = Mapping[tuple[Role, ...], tuple[float, ...]]


@dataclass(frozen=True)
class _Part:
    """The weights of a group that do the same."""

    roles: tuple[Role, ...]
    weights: tuple[Weight, ...]
    formats: tuple[Format, ...]


def sample_errors(storage: Storage, groups: Sequence[Group], workers: int) -> list[Errors]:
    """For each group and candidate. Raises InputError naming the tensor where a weight is NaN or infinite."""
    parts = [(number, part) for number, group in enumerate(groups) for part in _parts(group)]
    found: list[dict[tuple[Role, ...], tuple[float, ...]]] = [{} for _ in groups]
    with ThreadPoolExecutor(workers, thread_name_prefix="sample") as pool:
        for (number, part), errors in zip(parts, pool.map(lambda one: _errors(storage, one[1]), parts), strict=True):
            found[number][part.roles] = errors
    return list(found)


def relative_error(stored_as: Format, rows: NDArray[Any], weight: Weight) -> tuple[float, float]:
    """Squared error of some rows of a weight, in its own dtype, once decoded again, and their squared length."""
    if not is_float_dtype(weight.dtype):
        raise TypeError(f"{weight.name} is {weight.dtype}")
    truth = widen(rows, weight.dtype)
    lost = stored_as.decode(stored_as.encode(rows, weight.dtype), weight.columns) - truth
    return squared(lost), squared(truth)


def _parts(group: Group) -> Iterator[_Part]:
    by_roles: dict[tuple[Role, ...], list[Weight]] = {}
    for decision in group.decisions:
        by_roles.setdefault(decision.role.roles, []).append(decision.weight)
    formats = tuple(one.format for one in group.candidates)
    for roles, weights in by_roles.items():
        count = min(len(weights), _EXPERTS)
        yield _Part(roles, tuple(weights[i * len(weights) // count] for i in range(count)), formats)


def _errors(storage: Storage, part: _Part) -> tuple[float, ...]:
    sums = [[0.0, 0.0] for _ in part.formats]
    for weight in part.weights:
        for rows in _sample(
            storage, weight, _WEIGHTS // len(part.weights), max(one.block_rows for one in part.formats)
        ):
            for total, stored_as in zip(sums, part.formats, strict=True):
                for place, value in enumerate(_encoded(stored_as, rows, weight)):
                    total[place] += value
    return tuple(float(f"{lost / total:.{_DIGITS}g}") if total else 0.0 for lost, total in sums)


def _encoded(stored_as: Format, rows: NDArray[Any], weight: Weight) -> tuple[float, float]:
    try:
        return relative_error(stored_as, rows, weight)
    except NonFiniteWeight as error:
        why = "a weight is NaN, infinite or too large for the format"
        raise InputError(f"`{weight.name}` is not finite", why=why, fix="fetch it again, or `keep` it") from error


def _sample(storage: Storage, weight: Weight, weights: int, block: int) -> Iterator[NDArray[Any]]:
    """Blocks of rows from the beginning to the end; the whole weight where it is small."""
    wanted = max(1, weights // weight.columns)
    places = 1 if weight.rows <= wanted else _PLACES
    count = weight.rows if places == 1 else max(block, wanted // places // block * block)
    for place in range(places):
        first = (weight.rows - count) * place // max(places - 1, 1) // block * block
        rows = min(count, weight.rows - first)
        yield read_elements(storage, weight, first, rows).reshape(rows, weight.columns)


def squared(values: NDArray[np.float32]) -> float:
    """Squared length: row after row, then exactly: an order that no instruction set changes."""
    return math.fsum(np.square(values, dtype=np.float64).sum(axis=0))
