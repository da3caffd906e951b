"""The same for a layer whose tokens see only the last ones: a sliding window, or a chunk.

There are no sinks: every token leaves in the end. Packed tokens leave a block at a time, up to a block later than they
must, so that memory is not copied at every step; `update` hands out what the window holds and no more.
"""

from torch import Tensor

from tqcli.kv.layer import CompressedLayer
from tqcli.kv.settings import CacheSettings, Widths
from tqcli.kv.vectors import Packed


class CompressedSlidingLayer(CompressedLayer):
    """Keys and values of a layer of `sliding_window` tokens, the current one included."""

    is_sliding = True

    def __init__(self, settings: CacheSettings, widths: Widths, sliding_window: int) -> None:
        super().__init__(settings, widths)
        self.sliding_window = sliding_window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys the next `query_length` tokens attend to, and the position of the first."""
        visible = self._visible()
        return visible + query_length, self.cumulative_length - visible

    def get_max_length(self) -> int:
        """The window."""
        return self.sliding_window

    def get_max_cache_shape(self) -> int:
        """The window, by the name that older versions ask for."""
        return self.sliding_window

    def _visible(self) -> int:
        return min(self.cumulative_length, self.sliding_window - 1)

    def _fill_sinks(self) -> None:
        return

    def _pack(self, keys: Tensor, values: Tensor) -> None:
        limit = packed_limit(self.settings, self.sliding_window)
        super()._pack(keys[..., -limit:, :], values[..., -limit:, :])
        if self.packed and self.packed_tokens > limit:
            newest = [Packed(*(one[..., -limit:, :].clone() for one in side)) for side in self.packed]
            self.packed = newest[0], newest[1]

    def _remove(self, count: int) -> None:
        left = self.cumulative_length - count
        if self._stored() - count < min(left, self.sliding_window - 1):
            raise RuntimeError(
                f"cannot remove {count} tokens: the window of {self.sliding_window} has let go of those before them; "
                "call `activate_past_recording` before the forward pass that is to be undone"
            )
        super()._remove(count)


def packed_limit(settings: CacheSettings, sliding_window: int) -> int:
    """The most packed tokens that are kept; 0 or less where the residual window holds the sliding one whole."""
    return sliding_window - 1 - (settings.residual_tokens or 0)
