"""Slots on a device for experts that stay in host memory: what a cache asks of them, and slots in host memory too.

An expert is one item of each of several tensors: codes and scales of both projections. All of its items go to the same
slot.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Slots(Protocol):
    """For one layer. Between `copy` and `wait` a slot holds nothing that may be read."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    @property
    def expert_bytes(self) -> int:
        """Of one slot."""

    def copy(self, slot: int, expert: int) -> None:
        """Begin to copy; not before everything that was released has read the slot."""

    def wait(self, slot: int) -> None:
        """Whatever is computed from now on comes after the slot's copy."""

    def read(self, slot: int) -> Sequence[Tensor]:
        """Of each tensor the slot's item, (items' length,); not to be kept beyond `release`."""

    def release(self, slot: int) -> None:
        """What has been computed until now is all that reads the slot."""


class Buffers:
    """The memory of slots. host: (experts, length) each, contiguous."""

    def __init__(self, host: Sequence[Tensor], slots: int, device: torch.device) -> None:
        self.host = tuple(host)
        self.held = tuple(torch.empty(slots, one.shape[1], dtype=one.dtype, device=device) for one in host)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.held[0].device

    @property
    def expert_bytes(self) -> int:
        """Of one slot."""
        return sum(one.shape[1] * one.element_size() for one in self.host)

    def read(self, slot: int) -> Sequence[Tensor]:
        """Of each tensor the slot's item."""
        return [one[slot] for one in self.held]


class HostSlots(Buffers):
    """In host memory, where a copy is done when it is begun. It costs, and saves nothing: for tests."""

    def copy(self, slot: int, expert: int) -> None:
        """Done at once."""
        for target, source in zip(self.held, self.host, strict=True):
            target[slot].copy_(source[expert])

    def wait(self, slot: int) -> None:
        """Nothing to wait for."""

    def release(self, slot: int) -> None:
        """Nothing reads later."""


# From host tensors and a number of slots.
MakeSlots = Callable[[Sequence[Tensor], int], Slots]


def host_slots(host: Sequence[Tensor], slots: int) -> HostSlots:
    """Slots on the CPU."""
    return HostSlots(host, slots, torch.device("cpu"))
