"""Experts one by one, or all of a layer in one tensor: how layouts turn the one into the other.

Fused tensors hold gate and up one above the other for each expert, (experts, 2 * intermediate, hidden), as in Gemma 4.
Left out: which models do so, which is the architecture's to say.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqcli.architectures.base import Role
from tqcli.errors import InputError
from tqcli.weights import Run, Weight, joined

LEAVES: Mapping[Role, str] = {"expert_gate": "gate_proj", "expert_up": "up_proj", "expert_down": "down_proj"}
_STACKS: Mapping[str, tuple[Role, ...]] = {
    "gate_up_proj": ("expert_gate", "expert_up"),
    "down_proj": ("expert_down",),
}
_SLICE = re.compile(r"(.+)_e([0-9]{1,6})")
_COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


def is_stack(weight: Weight) -> bool:
    """Whether a weight holds all experts of a layer."""
    return len(weight.shape) == 3 and all(role in LEAVES for role in weight.role.roles)


def one_by_one(weight: Weight) -> Iterator[Weight]:
    """`...experts.gate_up_proj` -> `...experts.0.gate_proj.weight`, `...experts.0.up_proj.weight` and so on."""
    experts, rows, columns = weight.shape
    parent = weight.name.rpartition(".")[0]
    roles = weight.role.roles
    height = rows // len(roles)
    for expert in range(experts):
        for number, role in enumerate(roles):
            name = f"{parent}.{expert}.{LEAVES[role]}.weight"
            first = expert * rows + number * height
            yield weight.part(name, first, (height, columns), replace(weight.role, roles=(role,), expert=expert))


def stacked_apart(weight: Weight, parent: str) -> Iterator[Weight]:
    """`...experts.gate_up_proj` -> `<parent>.gate_proj.weight` and `<parent>.up_proj.weight`, each of all experts."""
    experts, rows, columns = weight.shape
    roles = weight.role.roles
    height = rows // len(roles)
    for number, role in enumerate(roles):
        runs = [run for e in range(experts) for run in weight.cut(e * rows + number * height, height)]
        part = replace(weight, role=replace(weight.role, roles=(role,)))
        yield joined(part, f"{parent}.{LEAVES[role]}.weight", (experts, height, columns), runs)


def fused(weights: Sequence[Weight], config: Mapping[str, Any]) -> tuple[Weight, ...]:
    """Experts one by one -> `gate_up_proj` and `down_proj` of each layer, at the place of the first.

    Raises InputError where an expert, or one of its matrices, is missing.
    """
    layers: dict[str, list[Weight]] = {}
    for weight in weights:
        if weight.role.expert is not None:
            layers.setdefault(weight.role.block, []).append(weight)
    found: list[Weight] = []
    for weight in weights:
        if weight.role.expert is None:
            found.append(weight)
        elif weight is layers[weight.role.block][0]:
            found += _layer(weight.role.block, layers[weight.role.block], expert_count(config))
    return tuple(found)


def _layer(block: str, weights: Iterable[Weight], expected: int | None) -> Iterator[Weight]:
    by_place = {(weight.role.expert, weight.role.roles[0]): weight for weight in weights}
    last = max(expert or 0 for expert, _ in by_place)
    if expected and last >= expected:
        raise InputError(f"`{block}` has an expert {last}", why=f"config.json says that there are {expected}")
    experts = range(expected or 1 + last)
    for name, roles in _STACKS.items():
        parts = [_expert(block, by_place, expert, role) for expert in experts for role in roles]
        if len({(part.shape, part.dtype) for part in parts}) != 1 or len(parts[0].shape) != 2:
            raise InputError(f"the experts of `{block}` differ in shape or dtype")
        rows, columns = parts[0].shape
        runs: list[Run] = [run for part in parts for run in part.runs]
        role = replace(parts[0].role, roles=roles, expert=None)
        whole = f"{block}.{name}"
        fused_weight = replace(parts[0], role=role, selector=whole)
        yield joined(fused_weight, whole, (len(experts), rows * len(roles), columns), runs)


def _expert(block: str, weights: Mapping[tuple[int | None, Role], Weight], expert: int, role: Role) -> Weight:
    weight = weights.get((expert, role))
    if weight is None:
        raise InputError(f"expert {expert} of `{block}` has no {LEAVES[role]}", why="experts are missing")
    return weight


def sliced(weight: Weight) -> Iterator[Weight]:
    """`...experts.gate_up_proj` -> `...experts.gate_up_proj_e0` and so on, gate and up together."""
    experts, rows, columns = weight.shape
    for expert in range(experts):
        role = replace(weight.role, expert=expert)
        yield weight.part(f"{weight.name}_e{expert}", expert * rows, (rows, columns), role)


def paired(weights: Sequence[Weight]) -> tuple[Weight, ...]:
    """Experts one by one -> `...experts.gate_up_proj_e0`, `...experts.down_proj_e0` and so on, each at the place of its
    first. What is no whole pair of one dtype stays as it is.
    """
    groups: dict[tuple[str, int, str], list[Weight]] = {}
    for weight in weights:
        if (stack := _stack_of(weight)) is not None:
            groups.setdefault(stack, []).append(weight)
    found: list[Weight] = []
    for weight in weights:
        stack = _stack_of(weight)
        group = groups.get(stack, []) if stack else []
        ordered = _in_order(group, _STACKS[stack[2]]) if stack else []
        if not stack or not ordered:
            found.append(weight)
        elif weight is group[0]:
            found.append(_pair(ordered, *stack))
    return tuple(found)


def _stack_of(weight: Weight) -> tuple[str, int, str] | None:
    """Block, expert and the fused tensor that one matrix of one expert belongs to."""
    role = weight.role
    if role.expert is None or len(role.roles) != 1 or len(weight.shape) != 2:
        return None
    name = next((name for name, roles in _STACKS.items() if role.roles[0] in roles), None)
    return (role.block, role.expert, name) if name else None


def _in_order(group: Sequence[Weight], roles: Sequence[Role]) -> list[Weight]:
    """One weight for each role; none where they are not those, or differ."""
    by_role = {weight.role.roles[0]: weight for weight in group}
    alike = {(weight.shape, weight.dtype) for weight in group}
    whole = len(group) == len(roles) == len(by_role) and len(alike) == 1
    return [by_role[role] for role in roles] if whole else []


def _pair(ordered: Sequence[Weight], block: str, expert: int, name: str) -> Weight:
    first = ordered[0]
    role = replace(first.role, roles=_STACKS[name])
    shape = (sum(weight.rows for weight in ordered), first.columns)
    runs = [run for weight in ordered for run in weight.runs]
    return joined(replace(first, role=role), f"{block}.{name}_e{expert}", shape, runs)


def stacked(weights: Sequence[Weight], config: Mapping[str, Any]) -> tuple[Weight, ...]:
    """`...experts.gate_up_proj_e0` and so on -> `...experts.gate_up_proj`, at the place of the first.

    Raises InputError where an expert is missing, or they differ in shape.
    """
    slices: dict[str, dict[int, Weight]] = {}
    for weight in weights:
        if match := _slice(weight):
            slices.setdefault(match[1], {})[int(match[2])] = weight
    found: list[Weight] = []
    for weight in weights:
        match = _slice(weight)
        if match is None:
            found.append(weight)
        elif weight is next(iter(slices[match[1]].values())):
            expected = None if weight.role.expert is None else expert_count(config)
            found.append(_stack(match[1], slices[match[1]], expected))
    return tuple(found)


def _slice(weight: Weight) -> re.Match[str] | None:
    """The fused name and the number in a slice's name. Other tensors may have such names too: they are plain."""
    meant = weight.role.expert is not None or not weight.is_plain
    return _SLICE.fullmatch(weight.name) if meant and len(weight.shape) == 2 else None


def _stack(name: str, slices: Mapping[int, Weight], expected: int | None) -> Weight:
    count = expected or 1 + max(slices)
    missing = next((expert for expert in range(count) if expert not in slices), None)
    if missing is not None:
        raise InputError(f"`{name}` has no expert {missing}", why=f"{len(slices)} of {count} experts are there")
    if len(slices) != count:
        raise InputError(f"`{name}` has {len(slices)} experts", why=f"the model has {count}")
    ordered = [slices[expert] for expert in range(count)]
    if len({weight.shape for weight in ordered}) != 1:
        raise InputError(f"the experts of `{name}` differ in shape")
    first = ordered[0]
    whole = replace(first, role=replace(first.role, expert=None), selector=name)
    return joined(whole, name, (count, *first.shape), [run for weight in ordered for run in weight.runs])


def expert_count(config: Mapping[str, Any]) -> int | None:
    """How many experts a layer has, where config.json says it."""
    text = config.get("text_config")
    section = text if isinstance(text, Mapping) else config
    counts = (section.get(key) for key in _COUNT_KEYS)
    return next((count for count in counts if type(count) is int and count > 0), None)
