"""Packed experts in host memory, with slots on a device for those that are in use, layer by layer.

`ExpertCache` brings the experts of a step to the device, group by group, and counts. `HostWeight` is a packed weight
whose experts are read from there. The experts come in the order in which they were asked for, so that results are equal
to the bit to those without a cache.

Left out: who goes (`expert_cache_policy`), how a copy is made (`expert_cache_slots`), and how a model gets all this
(`expert_cache_model`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor

from tqcli.errors import InputError
from tqcli.runtime.transformers.expert_cache_policy import Residents, in_groups
from tqcli.runtime.transformers.expert_cache_slots import Slots
from tqcli.runtime.transformers.weight import TqWeight


@dataclass
class Counts:
    """Since the model was loaded. hits and misses: experts that a step asked for, each once."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    bytes_copied: int = 0

    @property
    def hit_rate(self) -> float:
        """Of what was asked for; 0 where nothing was."""
        return self.hits / max(1, self.hits + self.misses)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


class ExpertCache:
    """Of one layer. Steps of several threads take turns."""

    def __init__(self, slots: Slots, count: int) -> None:
        self.count = count
        self.counts = Counts()
        self._slots = slots
        self._residents = Residents(count)
        self._open: int | None = None
        self._in_doubt = False
        self._lock = Lock()

    @property
    def device(self) -> torch.device:
        """Where the experts are computed with."""
        return self._slots.device

    def in_turn(self, experts: Sequence[int]) -> Iterator[int]:
        """Each of different experts; what `read` gives is the one that came last, until the next one is asked for."""
        with self._lock:
            if self._in_doubt:
                # A step was broken off, perhaps between what the numbers say and the copy itself.
                self._residents = Residents(self.count)
            self._in_doubt = True
            for group in in_groups(experts, self.count):
                self._bring(group)
                for expert in group:
                    yield from self._opened(expert)
            self._in_doubt = False

    def read(self, expert: int) -> Sequence[Tensor]:
        """Its item of each host tensor, on the device. Raises InputError for one whose turn it is not."""
        if expert != self._open:
            why = "they come to the device in turn, for the experts' own function alone"
            raise InputError("experts with a cache cannot be read one by one", why=why)
        return self._slots.read(self._residents.slot(expert))

    def _opened(self, expert: int) -> Iterator[int]:
        slot = self._residents.slot(expert)
        self._slots.wait(slot)
        self._open = expert
        try:
            yield expert
        finally:
            # After an error too: what was computed until then may still be reading.
            self._open = None
            self._slots.release(slot)

    def _bring(self, group: Sequence[int]) -> None:
        loads = self._residents.place(group)
        for load in loads:
            self._slots.copy(load.slot, load.expert)
        self.counts.hits += len(group) - len(loads)
        self.counts.misses += len(loads)
        self.counts.evictions += sum(load.evicted is not None for load in loads)
        self.counts.bytes_copied += len(loads) * self._slots.expert_bytes


class HostWeight(TqWeight):
    """A packed weight of three dimensions that stays in host memory and is read from the slots of a cache.

    Its parameters, and their names, are those of any packed weight, so that it is saved like one.
    """

    def __init__(self, weight: TqWeight, parts: Sequence[Tensor], cache: ExpertCache, items: slice) -> None:
        """parts: what stands for the weight's own. items: which of a slot's items are this weight's."""
        super().__init__(
            weight.weight_shape, weight.stored_as, weight.decoded_dtype, *(tuple(one.shape) for one in parts)
        )
        for (name, _), part in zip(weight.named_parameters(), parts, strict=True):
            self.register_parameter(name, torch.nn.Parameter(part, requires_grad=False))
        self.activations, self.threads = weight.activations, weight.threads
        self.cache = cache
        self._items = items

    def multiplies(self, hidden: Tensor, share: float = 1.0) -> bool:
        """Never: that is for experts which are read where they lie."""
        del hidden, share
        return False

    def __getitem__(self, index: int | Tensor) -> Tensor:
        """Decode the expert whose turn it is, on the device."""
        if not isinstance(index, int):
            raise InputError("experts with a cache cannot be read several at once", why="they come in turn")
        codes, scales = self.cache.read(index)[self._items]
        return self._decode(codes, scales).view(self.weight_shape[1:])

    def decode(self) -> Tensor:
        """The whole weight, on the device: for a model that is no longer to be packed."""
        return super().decode().to(self.cache.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """It follows no move of the model; where its slots are it is at home."""
        del recurse
        probe = fn(torch.empty(0, dtype=self.decoded_dtype, device=self.cache.device))
        if probe.device != self.cache.device:
            raise InputError(f"experts with a cache on `{self.cache.device}` cannot move to `{probe.device}`")
        self.decoded_dtype = probe.dtype
        return self


def in_turn(weight: Any, experts: Sequence[int]) -> Iterator[int]:
    """The experts one by one, each with its weights at hand. weight: either projection, of any kind."""
    return weight.cache.in_turn(experts) if isinstance(weight, HostWeight) else iter(experts)
