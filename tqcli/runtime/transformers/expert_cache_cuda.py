"""Slots on a CUDA device, filled from page-locked memory by a stream of their own.

Two events a slot keep the order: a copy waits for what last read the slot, whichever stream that ran on, and what reads
it waits for the copy. So copies run beside the computation, and neither sees the other's half. The price of a missing
event would be weights of two experts mixed, without an error.

Left out: several devices; memory that is one for both, where a copy is a waste.
"""

import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tqcli.errors import MachineError
from tqcli.runtime.transformers.expert_cache_slots import Buffers, MakeSlots

# Untyped in torch.
_CUDA: Any = torch.cuda


class CudaSlots(Buffers):
    """On the device; the copies of all layers share a stream. cuda: `torch.cuda`, or what stands for it in a test."""

    def __init__(
        self, host: Sequence[Tensor], slots: int, device: torch.device, stream: Any, cuda: Any = _CUDA
    ) -> None:
        super().__init__(host, slots, device)
        self._cuda = cuda
        self._stream = stream
        self._copied = [cuda.Event() for _ in range(slots)]
        self._read = [cuda.Event() for _ in range(slots)]
        # The memory may have been another tensor's a moment ago.
        stream.wait_stream(cuda.current_stream(device))

    def copy(self, slot: int, expert: int) -> None:
        """Begin to copy; not before everything that was released has read the slot."""
        # An event that was never recorded is one that has passed.
        self._stream.wait_event(self._read[slot])
        with self._cuda.stream(self._stream):
            for target, source in zip(self.held, self.host, strict=True):
                target[slot].copy_(source[expert], non_blocking=True)
        self._copied[slot].record(self._stream)

    def wait(self, slot: int) -> None:
        """What this thread's stream computes from now on comes after the slot's copy."""
        stream = self._cuda.current_stream(self.device)
        stream.wait_event(self._copied[slot])
        # After who reads it on another stream, too: the next `release` then speaks for both.
        stream.wait_event(self._read[slot])

    def release(self, slot: int) -> None:
        """What this thread's stream has been given until now is all that reads the slot."""
        self._read[slot].record(self._cuda.current_stream(self.device))


def cuda_slots(device: torch.device) -> MakeSlots:
    """Slots on a device, with one stream for the copies of all layers that are made by it."""
    stream = _CUDA.Stream(device)

    def make(host: Sequence[Tensor], slots: int) -> CudaSlots:
        found = CudaSlots(host, slots, device, stream)
        for one in found.held:
            # It is not given to another tensor while a copy is on its way.
            one.record_stream(stream)
        return found

    return make


def page_locked(tensor: Tensor) -> Tensor:
    """A copy in page-locked memory of just its size; torch's own takes the next power of two.

    Raises MachineError where the memory cannot be locked.
    """
    if not tensor.numel():
        return tensor.clone()
    # Pages of its own: two tensors that shared one could not both be locked.
    memory = mmap.mmap(-1, tensor.nbytes)
    result = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)
    result.copy_(tensor)
    runtime = _CUDA.cudart()
    status = int(runtime.cudaHostRegister(result.data_ptr(), tensor.nbytes, 0))
    if status != 0:
        why = f"cudaHostRegister of {tensor.nbytes / 1e9:.2f} GB: error {status}"
        raise MachineError("the experts cannot be locked in main memory", why=why, fix="load without `expert_cache`")
    # Before the memory is given back. At the end of the process all of it goes by itself.
    weakref.finalize(memory, _unlock, runtime, result.data_ptr()).atexit = False
    return result


def _unlock(runtime: Any, pointer: int) -> None:
    # A copy may still be reading it.
    _CUDA.synchronize()
    runtime.cudaHostUnregister(pointer)
