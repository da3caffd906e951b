"""vLLM does not start with a checkpoint that is not whole, or with settings that make no sense, and says why.

By itself it would start, and answer with the first token for ever. Published checkpoints list their tensors nowhere:
there only counting tells what is missing.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import pack
from support.command import succeed
from support.vllm_runs import TEXT_ONLY, VLLM, refuse

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM.exists(), reason="no environment of vLLM; scripts/test_vllm makes it"),
]
Tensors = dict[str, torch.Tensor]
EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"
ROUTER = "model.layers.0.mlp.gate.weight"


@pytest.fixture
def published(sources, tmp_path) -> Callable[[Callable[[Tensors], None]], Path]:
    def write(edit: Callable[[Tensors], None]) -> Path:
        source = sources["qwen3_moe"]
        tensors = pack.pack_tensors(source, packs=pack.is_packed_by_the_peer)
        edit(tensors)
        return pack.write(source, tmp_path / "published", tensors, tq_config=pack.published_tq_config())

    return write


def without(*names: str) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return edit


def with_expert(number: int) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        for ending in (".tq_packed", ".tq_norms"):
            tensors[EXPERT.replace(".5.", f".{number}.") + ending] = tensors[EXPERT + ending].clone()

    return edit


def shortened(tensors: Tensors) -> None:
    name = "model.layers.1.input_layernorm.weight"
    tensors[name] = tensors[name][:-3].clone()


def with_fewer_rows(tensors: Tensors) -> None:
    for ending in (".tq_packed", ".tq_norms"):
        tensors[EXPERT + ending] = tensors[EXPERT + ending][:-2].clone()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without(EXPERT + ".tq_packed", EXPERT + ".tq_norms"), "is not whole: `up` of expert 5 did not come"),
        (without("model.layers.1.post_attention_layernorm.weight"), "the checkpoint is not whole"),
        (without(ROUTER + ".tq_packed", ROUTER + ".tq_norms"), "is not whole: `weight` did not come"),
        (with_expert(12), f"tensor `{EXPERT.replace('.5.', '.12.')}` is one too many"),
        (with_fewer_rows, "is not whole: `up` of expert 5 did not come"),
        (shortened, "tensor `model.layers.1.input_layernorm.weight` cannot be loaded"),
    ],
    ids=["expert", "norm", "router", "surplus", "rows", "shape"],
)
def test_a_checkpoint_that_lists_nothing_is_counted(edit, message, published):
    assert message in refuse(published(edit))


def test_a_folder_that_lists_its_tensors_is_checked_first(sources, tmp_path):
    folder = tmp_path / "out"
    succeed("convert", sources["gemma4"], folder, "-r", "tq3")
    tensors = pack.tensors_of(folder)
    name = "model.language_model.layers.0.layer_scalar"
    del tensors[name]
    pack.write_shards(folder, tensors, 1)
    assert f"tensor `{name}` is missing" in refuse(folder, **TEXT_ONLY)


def test_another_load_format_is_refused(sources, tmp_path):
    folder = tmp_path / "out"
    succeed("convert", sources["qwen3"], folder, "-r", "tq3")
    assert "was used before it was loaded" in refuse(folder, load_format="dummy")


def test_settings_that_make_no_sense_are_refused(sources):
    assert "TQ_ACTIVATIONS is `int4`" in refuse(sources["qwen3"], environment={"TQ_ACTIVATIONS": "int4"})


def test_a_newer_format_is_refused(sources, tmp_path):
    folder = tmp_path / "out"
    succeed("convert", sources["qwen3"], folder, "-r", "tq3")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format_version"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    assert "the checkpoint is of format version 99" in refuse(folder)
