"""A stand-in for a model that says what a test wants it to say, and waits where a test wants it to wait."""

import threading
from types import SimpleNamespace

import torch

from tqcli.server.service import Service, Settings, make_service

NAME = "tiny"


class ScriptedModel:
    """Answers every prompt with `script`, token by token, whatever was asked. The cache is a list of the tokens seen.

    gate: forward waits until it is set. steps: number of calls of forward so far.
    """

    device = torch.device("cpu")

    def __init__(self, script: list[int], vocabulary: int, *, eos: int | list[int] | None = None) -> None:
        self.script = script
        self.vocabulary = vocabulary
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0
        self.fails = False
        self.prompts: list[int] = []
        self.generation_config = SimpleNamespace(eos_token_id=eos, max_new_tokens=None)

    def get_input_embeddings(self):
        return SimpleNamespace(num_embeddings=self.vocabulary)

    def forward(self, input_ids, cache, use_cache, logits_to_keep):
        assert use_cache
        assert logits_to_keep == 1
        self.steps += 1
        self.gate.wait(timeout=60)
        if self.fails:
            raise RuntimeError("the roof is on fire")
        tokens = input_ids[0].tolist()
        if not cache or len(tokens) > 1:
            cache.append(0)
            self.prompts = tokens
        else:
            cache[0] += 1
        logits = torch.zeros(1, 1, self.vocabulary)
        logits[0, 0, self.script[cache[0] % len(self.script)]] = 50.0
        return SimpleNamespace(logits=logits)

    def __call__(self, **arguments):
        return self.forward(**arguments)


def service(model: ScriptedModel, tokenizer, **settings) -> Service:
    return make_service(model, tokenizer, list, Settings(**{"names": (NAME, "alias"), "max_model_len": 64, **settings}))
