"""From logits to the next token: penalties, temperature, top-k, top-p, min-p, and a draw that a seed repeats.

Log probabilities are those of the model itself, before anything of this changes them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the likeliest token. top_k 0 and top_p 1 keep all. seed None: another one each time.

    The penalties are OpenAI's (presence, frequency: of what was written) and Hugging Face's (repetition: of the prompt
    too).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Picked:
    """A token, its log probability, and the likeliest ones with theirs, the best first."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The state of one answer: the random numbers, and what was written so far."""

    def __init__(self, settings: Sampling, prompt: Iterable[int], top_logprobs: int | None = None) -> None:
        """top_logprobs: how many of the likeliest tokens to tell; None for no log probabilities at all."""
        self._settings = settings
        self._top_logprobs = top_logprobs
        self._written: Counter[int] = Counter()
        self._prompt = tuple(dict.fromkeys(prompt))
        self._generator = torch.Generator()
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)

    def pick(self, logits: torch.Tensor) -> Picked:
        """logits: (vocabulary,), any float. Raises ArithmeticError where they are no numbers."""
        logits = logits.detach().to("cpu", torch.float32)
        if not torch.isfinite(logits.max()):
            raise ArithmeticError("the model's logits are not finite")
        changed = self._penalised(logits)
        token = int(changed.argmax()) if self._settings.temperature == 0 else self._draw(changed)
        self._written[token] += 1
        if self._top_logprobs is None:
            return Picked(token)
        logprobs = torch.log_softmax(logits, dim=-1)
        values, indices = logprobs.topk(min(self._top_logprobs, len(logprobs)))
        return Picked(token, float(logprobs[token]), tuple(zip(indices.tolist(), values.tolist(), strict=True)))

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        settings = self._settings
        if settings.repetition_penalty != 1:
            logits = logits.clone()
            seen = torch.tensor(list({*self._prompt, *self._written}), dtype=torch.long)
            values = logits[seen]
            factor = settings.repetition_penalty
            logits[seen] = torch.where(values > 0, values / factor, values * factor)
        if self._written and (settings.presence_penalty or settings.frequency_penalty):
            logits = logits.clone()
            seen = torch.tensor(list(self._written))
            counts = torch.tensor(list(self._written.values()), dtype=torch.float32)
            logits[seen] -= settings.presence_penalty + settings.frequency_penalty * counts
        return logits

    def _draw(self, logits: torch.Tensor) -> int:
        # The largest is 0, so that no temperature, however small, overflows.
        scaled = (logits - logits.max()) / max(self._settings.temperature, 1e-5)
        probabilities, tokens = self._candidates(scaled)
        drawn = torch.multinomial(probabilities, 1, generator=self._generator)
        return int(drawn if tokens is None else tokens[drawn])

    def _candidates(self, scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Probabilities of what may be drawn, and which tokens they are; None for the whole vocabulary."""
        settings = self._settings
        if settings.top_k <= 0 and settings.top_p >= 1 and settings.min_p <= 0:
            return torch.softmax(scaled, dim=-1), None
        number = min(settings.top_k, len(scaled)) if settings.top_k > 0 else len(scaled)
        values, tokens = scaled.topk(number)
        probabilities = torch.softmax(values, dim=-1)
        # What comes before a token leaves some of top_p for it; the likeliest always stays.
        kept = probabilities.cumsum(dim=-1) - probabilities < settings.top_p
        kept &= probabilities >= settings.min_p * probabilities[0]
        kept[0] = True
        return probabilities * kept, tokens
