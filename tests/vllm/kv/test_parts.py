"""Every token that attention looks at is unpacked, once, from where it is stored; and nothing without need."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tqcli.runtime.vllm.kv.parts import Step, parts


@st.composite
def steps(draw):
    """Sequences that may share their first blocks, and rows beyond them that stand for none."""
    block_tokens = draw(st.sampled_from([1, 4, 32]))
    lengths = draw(st.lists(st.integers(1, 5 * block_tokens), min_size=1, max_size=6))
    new = [draw(st.integers(1, length)) for length in lengths]
    width = 6
    free = iter(range(100, 200))
    shared = [next(free) for _ in range(width)]
    rows = []
    for length in lengths:
        count = draw(st.integers(0, width)) if draw(st.booleans()) else 0
        full = length // block_tokens
        rows.append([shared[i] if i < min(count, full) else next(free) for i in range(width)])
    idle = draw(st.integers(0, 2))
    starts = np.cumsum([0, *new, *[0] * idle])
    table = np.array(rows + [[0] * width] * idle)
    window = draw(st.sampled_from([-1, 1, 3, 40]))
    return Step(starts, np.array(lengths + [0] * idle), table, block_tokens, window)


@settings(deadline=None, max_examples=300)
@given(step=steps(), limit=st.integers(1, 20))
def test_what_is_attended_to_is_there(step, limit):
    found = list(parts(step, limit))
    assert [part.sequences.start for part in found] == [0, *[part.sequences.stop for part in found[:-1]]]
    assert found[-1].sequences.stop == len(step.lengths)
    for part in found:
        assert (part.tokens.start, part.tokens.stop) == (
            step.starts[part.sequences.start], step.starts[part.sequences.stop],
        )  # fmt: skip
        assert len(set(part.blocks.tolist())) == len(part.blocks)
        assert part.table.dtype == torch.int32
        sequences = range(part.sequences.start, part.sequences.stop)
        for row, sequence in zip(part.table, sequences, strict=True):
            length, new = step.lengths[sequence], step.starts[sequence + 1] - step.starts[sequence]
            oldest = 0 if step.window < 0 else max(length - new - step.window + 1, 0)
            for position in range(oldest, length):
                at = row[position // step.block_tokens]
                assert part.blocks[at] == step.table[sequence, position // step.block_tokens]
                assert position % step.block_tokens < part.lengths[at]


@settings(deadline=None, max_examples=300)
@given(step=steps(), limit=st.integers(1, 20))
def test_nothing_else_is_there(step, limit):
    for part in parts(step, limit):
        sequences = range(part.sequences.start, part.sequences.stop)
        spans = [step.span(sequence) for sequence in sequences]
        counts = [stop - start for start, stop in spans]
        assert sum(counts) <= limit or sum(1 for count in counts if count) == 1
        wanted = {
            int(step.table[sequence, block])
            for sequence, (start, stop) in zip(sequences, spans, strict=True)
            for block in range(start, stop)
        }
        assert set(part.blocks.tolist()) == wanted
        for block, length in zip(part.blocks.tolist(), part.lengths.tolist(), strict=True):
            ends = [
                min(step.lengths[sequence] - start * step.block_tokens, step.block_tokens)
                for sequence in sequences
                for start in range(*step.span(sequence))
                if step.table[sequence, start] == block
            ]
            assert length == max(ends)


def test_a_window_leaves_out_what_it_has_passed():
    step = Step(np.array([0, 1]), np.array([100]), np.arange(4)[None], 32, 20)
    assert step.span(0) == (2, 4)
    (part,) = parts(step, 100)
    assert part.blocks.tolist() == [2, 3]
    assert part.lengths.tolist() == [32, 4]
    assert part.table.tolist() == [[0, 0, 0, 1]]
