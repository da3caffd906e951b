"""The order that streams and events of CUDA are given, told by clocks: no copy and no reader meets the other's half.

There is no CUDA here: streams are a list of clocks, and what comes before what is what the events say, no more.
"""

import gc
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tqcli.errors import MachineError
from tqcli.runtime.transformers import expert_cache_cuda
from tqcli.runtime.transformers.expert_cache import ExpertCache
from tqcli.runtime.transformers.expert_cache_cuda import CudaSlots, page_locked

Clock = dict[int, int]


class Stream:
    """What has certainly happened before its next operation: of each stream so many."""

    def __init__(self, machine: "Machine") -> None:
        self.machine, self.number = machine, len(machine.streams)
        self.clock: Clock = {}
        machine.streams.append(self)

    def tick(self) -> tuple[int, int]:
        self.clock[self.number] = self.clock.get(self.number, 0) + 1
        return self.number, self.clock[self.number]

    def merge(self, clock: Clock) -> None:
        self.clock |= {key: max(value, self.clock.get(key, 0)) for key, value in clock.items()}

    def wait_stream(self, other: "Stream") -> None:
        self.merge(other.clock)

    def wait_event(self, event: "Event") -> None:
        self.merge(event.clock)


class Event:
    def __init__(self) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream) -> None:
        self.clock = dict(stream.clock)


class Machine:
    """Stands for `torch.cuda`."""

    Event = Event

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.current = Stream(self)

    def current_stream(self, device) -> Stream:
        return self.current

    def stream(self, stream: Stream):
        machine = self

        class Within:
            def __enter__(self):
                self.before, machine.current = machine.current, stream

            def __exit__(self, *_):
                machine.current = self.before

        return Within()


class Memory:
    """Of slots: what was done with each, and by whom. An operation comes after all that it must not meet."""

    def __init__(self, machine: Machine, slots: int) -> None:
        self.machine = machine
        self.copied: list[tuple[int, int] | None] = [None] * slots
        self.readers: list[list[tuple[int, int]]] = [[] for _ in range(slots)]

    def __getitem__(self, slot: int):
        return SimpleNamespace(
            copy_=lambda source, non_blocking: self.copy(slot, non_blocking), read=lambda: self.read(slot)
        )

    def copy(self, slot: int, non_blocking: bool) -> None:
        assert non_blocking
        for earlier in [*self.readers[slot], *filter(None, [self.copied[slot]])]:
            self.check(earlier)
        self.copied[slot] = self.machine.current.tick()
        self.readers[slot] = []

    def read(self, slot: int) -> None:
        assert self.copied[slot] is not None
        self.check(self.copied[slot])
        self.readers[slot].append(self.machine.current.tick())

    def check(self, earlier: tuple[int, int]) -> None:
        stream, time = earlier
        assert self.machine.current.clock.get(stream, 0) >= time, "nothing says that it comes after"


step = st.sets(st.integers(0, 7), min_size=1).map(sorted)


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(0, 2), step), max_size=12))
def test_what_comes_after_what(slots, steps):
    """Steps on several streams in turn."""
    machine = Machine()
    computing = [machine.current, Stream(machine), Stream(machine)]
    copying = Stream(machine)
    made = CudaSlots([torch.zeros(8, 1)], slots, torch.device("cpu"), copying, machine)
    memory = Memory(machine, slots)
    made.held = (memory,)
    made.__class__ = type("OnMemory", (CudaSlots,), {"device": torch.device("cpu"), "expert_bytes": 4})
    cache = ExpertCache(made, slots)
    for stream, experts in steps:
        machine.current = computing[stream]
        for expert in cache.in_turn(experts):
            cache.read(expert)[0].read()
    assert all(number == copying.number for number, _ in filter(None, memory.copied))


@pytest.fixture
def runtime(monkeypatch):
    """What CUDA is told to lock and to unlock."""
    told = SimpleNamespace(status=0, locked={}, unlocked=[], synchronised=0)

    def lock(pointer: int, nbytes: int, flags: int) -> int:
        told.locked[pointer] = nbytes
        return told.status

    def synchronise() -> None:
        told.synchronised += 1

    cudart = SimpleNamespace(cudaHostRegister=lock, cudaHostUnregister=told.unlocked.append)
    monkeypatch.setattr(expert_cache_cuda, "_CUDA", SimpleNamespace(cudart=lambda: cudart, synchronize=synchronise))
    return told


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.float16, torch.float32])
def test_locked_memory_is_of_just_its_size(runtime, dtype):
    values = torch.arange(3 * 5 * 7).to(dtype).view(3, 5, 7)
    found = page_locked(values)
    assert torch.equal(found, values)
    assert found.dtype == dtype
    assert found.data_ptr() != values.data_ptr()
    assert found.data_ptr() % 4096 == 0
    assert runtime.locked == {found.data_ptr(): values.nbytes}


def test_it_is_unlocked_before_it_is_given_back(runtime):
    found = page_locked(torch.ones(9))
    pointer, part = found.data_ptr(), found[2:]
    del found
    gc.collect()
    assert runtime.unlocked == []
    del part
    gc.collect()
    assert (runtime.unlocked, runtime.synchronised) == ([pointer], 1)


def test_memory_that_cannot_be_locked(runtime):
    runtime.status = 2
    with pytest.raises(MachineError, match="error 2"):
        page_locked(torch.ones(9))
    gc.collect()
    assert runtime.unlocked == []


def test_nothing_to_lock(runtime):
    assert page_locked(torch.ones(0, 3)).shape == (0, 3)
    assert runtime.locked == {}
