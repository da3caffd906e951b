"""Linear layers, embeddings and experts on packed weights compute what the decoded weights compute."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional
from tq_kernels.backends import selected

from tqcli.formats.native_section import NativeFormat
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform
from tqcli.runtime.packed import decode_packed, encode_packed
from tqcli.runtime.vllm import compute, ops
from tqcli.runtime.vllm.compute import Experts
from tqcli.runtime.vllm.spec import Packed, Spec

EXPERTS, HIDDEN, INNER, TOP = 6, 96, 64, 2
FORMATS = [(Tq(bits=3), Tq(bits=3), Tq(bits=4, group_size=64)), (Trellis(bits=2), Uniform(bits=4), Trellis(bits=3))]
needs_kernels = pytest.mark.skipif(selected()[1] is None, reason="products need the native kernels")


def weight(stored_as: NativeFormat, rows: int, columns: int, seed: int) -> tuple[Packed, torch.Tensor]:
    matrix = 0.2 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes, scales = encode_packed(stored_as, matrix)
    decoded = decode_packed(stored_as, codes, scales, columns, torch.float32)
    return Packed(codes, scales, Spec(stored_as, columns, 0, columns)), decoded


def layer(formats: tuple[NativeFormat, ...], gate: str) -> tuple[Experts, list[torch.Tensor]]:
    sizes = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
    found = [
        weight(one, EXPERTS * size[0], size[1], seed)
        for seed, (one, size) in enumerate(zip(formats, sizes, strict=True))
    ]
    decoded = [one.view(EXPERTS, -1, one.shape[-1]) for _, one in found]
    return Experts(EXPERTS, *(one for one, _ in found), gate), decoded


def reference(
    hidden: torch.Tensor, shares: torch.Tensor, numbers: torch.Tensor, weights: list[torch.Tensor], gate: Callable
) -> torch.Tensor:
    """Token after token, expert after expert."""
    found = torch.zeros_like(hidden)
    for token in range(len(hidden)):
        for share, expert in zip(shares[token], numbers[token].tolist(), strict=True):
            if expert >= 0:
                gate_proj, up_proj, down_proj = (one[expert] for one in weights)
                inner = gate(gate_proj @ hidden[token]) * (up_proj @ hidden[token])
                found[token] += share * (down_proj @ inner)
    return found


def choices(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations, shares and numbers of experts; some experts are on another rank."""
    generator = torch.Generator().manual_seed(tokens)
    numbers = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP] for _ in range(tokens)]).int()
    numbers[numbers == 4] = -1
    return torch.randn(tokens, HIDDEN, generator=generator), torch.rand(tokens, TOP, generator=generator), numbers


@pytest.mark.parametrize("tokens", [1, 7, 300])
@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("gate", list(compute.GATES))
def test_experts_of_decoded_weights(tokens, formats, gate):
    experts, decoded = layer(formats, gate)
    given = choices(tokens)
    wanted = reference(*given, decoded, compute.GATES[gate])
    assert torch.allclose(compute.experts(*given, experts, "float"), wanted, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize(("activations", "limit"), [("int16", 1e-2), ("int8", 1e-1)])
@pytest.mark.parametrize("formats", FORMATS)
def test_experts_by_products_are_near(activations, limit, formats):
    experts, decoded = layer(formats, "silu")
    given = choices(7)
    wanted = reference(*given, decoded, functional.silu)
    found = compute.experts(*given, experts, activations)
    assert not torch.equal(found, compute.experts(*given, experts, "float"))
    assert (found - wanted).norm() / wanted.norm() < limit


def test_experts_that_are_all_elsewhere_add_nothing():
    experts, _ = layer(FORMATS[0], "silu")
    hidden, shares, numbers = choices(3)
    assert not compute.experts(hidden, shares, torch.full_like(numbers, -1), experts, "float").any()
    assert compute.experts(hidden[:0], shares[:0], numbers[:0], experts, "float").shape == (0, HIDDEN)


@pytest.mark.parametrize("tokens", [(), (1,), (2, 5), (0,)])
def test_a_linear_layer_keeps_leading_dimensions(tokens):
    packed, decoded = weight(Tq(bits=3), 40, HIDDEN, 1)
    hidden = torch.randn(*tokens, HIDDEN)
    assert torch.equal(compute.linear(hidden, packed, "float"), functional.linear(hidden, decoded))


def test_a_weight_is_decoded_in_pieces(monkeypatch):
    packed, decoded = weight(Uniform(bits=8), 40, HIDDEN, 1)
    hidden = torch.randn(3, HIDDEN)
    monkeypatch.setattr(compute, "_PIECE", 7 * HIDDEN)
    assert torch.allclose(compute.linear(hidden, packed, "float"), functional.linear(hidden, decoded), atol=1e-5)


@pytest.mark.parametrize("stored_as", [Tq(bits=3), Trellis(bits=4), Uniform(bits=4)])
def test_an_embedding_gives_the_rows(stored_as):
    packed, decoded = weight(stored_as, 40, HIDDEN, 1)
    ids = torch.tensor([[3, 39], [0, 3]])
    assert torch.equal(compute.embedding(ids, packed, torch.float32), decoded[ids])
    assert torch.equal(compute.embedding(ids, packed, torch.bfloat16), decoded[ids].bfloat16())


def test_operations_have_the_shapes_that_compilers_are_told():
    packed, _ = weight(Tq(bits=3), 40, HIDDEN, 1)
    experts, _ = layer(FORMATS[1], "gelu_tanh")
    tensors = [one for part in experts.weights for one in (part.codes, part.scales)]
    specs = ops.SPEC_SEPARATOR.join(part.spec.text for part in experts.weights)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        ops.linear, (torch.randn(2, HIDDEN), packed.codes, packed.scales, packed.spec.text, "float"), test_utils=checks
    )
    ids = torch.tensor([1, 2])
    torch.library.opcheck(
        ops.embedding, (ids, packed.codes, packed.scales, packed.spec.text, torch.bfloat16), test_utils=checks
    )
    given = (*choices(5), tensors, specs, EXPERTS, "gelu_tanh", "float")
    torch.library.opcheck(ops.experts, given, test_utils=checks)
    assert torch.equal(ops.experts(*given), compute.experts(*choices(5), experts, "float"))
