"""`Part`: what is kept of one weight, or of one that vLLM joins with others in a layer, while its rows arrive.

The first rows say what it is: packed in some format, or plain. All rows must come, and none twice. Left out: which rows
of which weight they are (`home`).
"""

import torch
from torch import Tensor

from tqcli.errors import InputError
from tqcli.runtime.packed import empty_stored
from tqcli.runtime.vllm.spec import Packed, Spec


class Part:
    """label: for messages, such as `q`. rows: on this rank. items: equal runs of rows, such as one an expert."""

    def __init__(self, label: str, rows: int, device: torch.device, items: int = 1) -> None:
        self.label = label
        self.rows = rows
        self._device = device
        self._items = items
        self._filled = torch.zeros(rows, dtype=torch.bool, device="cpu")
        self._packed: Packed | None = None
        self._plain: Tensor | None = None

    def put_packed(self, first: int, codes: Tensor, scales: Tensor, spec: Spec) -> None:
        """Rows from `first` on, as matrices. Raises InputError where other rows mean something else."""
        if self._packed is None and self._plain is None:
            empty = empty_stored(self.rows, spec.columns, spec.stored_as, self._device)
            # Rows that belong to nothing on disk decode to zeros in every format.
            self._packed = Packed(empty[0].zero_(), empty[1].zero_(), spec)
        if self._packed is None:
            raise self._mixed(spec.stored_as.label, "plain")
        if self._packed.spec != spec:
            raise self._mixed(spec.stored_as.label, self._packed.spec.stored_as.label)
        count = len(scales)
        self._mark(first, count)
        for target, given in ((self._packed.codes, codes), (self._packed.scales, scales)):
            target.view(self.rows, -1)[first : first + count] = given.reshape(count, -1).to(target.device)

    def put_plain(self, first: int, given: Tensor, dtype: torch.dtype) -> None:
        """Rows from `first` on, (n, columns). Raises InputError where other rows are packed."""
        if self._packed is not None:
            raise self._mixed("plain", self._packed.spec.stored_as.label)
        if self._plain is None:
            self._plain = torch.zeros(self.rows, given.shape[-1], dtype=dtype, device=self._device)
        self._mark(first, len(given))
        self._plain[first : first + len(given)] = given

    def put_zeros(self, first: int, count: int) -> None:
        """Rows that belong to nothing on disk, such as those that make a vocabulary a round number."""
        self._mark(first, count)

    def finished(self, name: str) -> Packed | Tensor:
        """What it became. name: of the layer's weight. Raises InputError where rows did not come."""
        missing = (~self._filled).nonzero()
        found = self._packed if self._packed is not None else self._plain
        if len(missing) or found is None:
            raise InputError(
                f"`{name}` is not whole: {self._where(int(missing[0]) if len(missing) else 0)} did not come",
                why=f"{len(missing)} of {self.rows} rows are in no file of the checkpoint",
                fix="fetch or convert the checkpoint again",
            )
        return found

    def _where(self, row: int) -> str:
        if self._items == 1:
            return f"`{self.label}`"
        return f"`{self.label}` of expert {row // (self.rows // self._items)}"

    def _mark(self, first: int, count: int) -> None:
        if bool(self._filled[first : first + count].any()):
            raise InputError(f"{self._where(first)} comes twice", why="two tensors of the checkpoint go to one place")
        self._filled[first : first + count] = True

    def _mixed(self, new: str, old: str) -> InputError:
        why = f"some of it is {old}, some {new}"
        return InputError(f"`{self.label}` is packed in two ways", why=why, fix="a recipe without that override")
