"""How far one model's next-token distributions lie from another's, token by token, from their logits alone.

Everything is computed in float64: a good compression differs from its original by less than float32's rounding over a
large vocabulary. Left out: where logits come from (`evaluate`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Logits are widened in parts: a vocabulary of 262144 takes 2 MB a token in float64.
_CHUNK_LOGITS = 1 << 22


@dataclass(frozen=True, eq=False)
class TokenDivergence:
    """One entry a predicted token, all shape (tokens,), on the CPU.

    kl: float64, KL(reference || other) in nats. agrees: bool, whether both put the same token first.
    reference_loss, loss: float64, minus the log-probability of the token that came, in nats.
    """

    kl: Tensor
    agrees: Tensor
    reference_loss: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Divergence:
    """The summary over all tokens. KL in nats; percentiles interpolate linearly; agreement is a share of 1."""

    tokens: int
    kl_mean: float
    kl_median: float
    kl_p90: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    reference_perplexity: float
    perplexity: float


def compare_logits(reference: Tensor, other: Tensor, targets: Tensor) -> TokenDivergence:
    """Compare two models on the same tokens.

    reference, other: (tokens, vocabulary), any floating dtype, unnormalised. targets: int64 (tokens,), the tokens that
    came. Raises ValueError where shapes differ, nothing is there, or a logit is NaN or +Inf.
    """
    _check_shapes(reference, other, targets)
    step = max(1, _CHUNK_LOGITS // reference.shape[1])
    parts = zip(*(torch.split(tensor, step) for tensor in (reference, other, targets)), strict=True)
    return join([_compare(*part) for part in parts])


def join(parts: Sequence[TokenDivergence]) -> TokenDivergence:
    """Several stretches of tokens as one."""
    return TokenDivergence(
        kl=torch.cat([part.kl for part in parts]),
        agrees=torch.cat([part.agrees for part in parts]),
        reference_loss=torch.cat([part.reference_loss for part in parts]),
        loss=torch.cat([part.loss for part in parts]),
    )


def summarise(tokens: TokenDivergence) -> Divergence:
    """Means, percentiles and perplexities."""
    # torch.quantile refuses more than 2**24 entries; sorting does not.
    ordered = tokens.kl.sort().values
    return Divergence(
        tokens=len(ordered),
        kl_mean=ordered.mean().item(),
        kl_median=_percentile(ordered, 0.5),
        kl_p90=_percentile(ordered, 0.9),
        kl_p99=_percentile(ordered, 0.99),
        kl_max=ordered[-1].item(),
        top1_agreement=tokens.agrees.double().mean().item(),
        reference_perplexity=tokens.reference_loss.mean().exp().item(),
        perplexity=tokens.loss.mean().exp().item(),
    )


def _compare(reference: Tensor, other: Tensor, targets: Tensor) -> TokenDivergence:
    expected, found = (_log_probabilities(logits) for logits in (reference, other))
    # A token that the reference rules out adds nothing, whatever the other says of it.
    terms = torch.where(expected.isneginf(), 0.0, expected.exp() * (expected - found))
    column = targets[:, None]
    return TokenDivergence(
        # Rounding may leave a few 1e-17 below zero, where the divergence cannot be.
        kl=terms.sum(-1).clamp_min(0).cpu(),
        agrees=(expected.argmax(-1) == found.argmax(-1)).cpu(),
        reference_loss=-expected.gather(1, column)[:, 0].cpu(),
        loss=-found.gather(1, column)[:, 0].cpu(),
    )


def _log_probabilities(logits: Tensor) -> Tensor:
    logarithms = logits.double().log_softmax(-1)
    if logarithms.isnan().any():
        raise ValueError("the logits hold NaN or +Inf")
    return logarithms


def _percentile(ordered: Tensor, share: float) -> float:
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    left, right = ordered[below].item(), ordered[above].item()
    return left if left == right else left + (right - left) * (position - below)


def _check_shapes(reference: Tensor, other: Tensor, targets: Tensor) -> None:
    if reference.ndim != 2 or reference.shape != other.shape or reference.numel() == 0:
        raise ValueError(f"two equal matrices of logits are needed, got {reference.shape} and {other.shape}")
    if targets.shape != reference.shape[:1]:
        raise ValueError(f"{len(reference)} targets are needed, got {targets.shape}")
