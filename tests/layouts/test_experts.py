"""Experts one by one, stacked, fused: what comes out is what went in, and nothing that is missing is made up."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkpoints

from tqcli.architectures.base import find
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError
from tqcli.layouts.experts import expert_count, fused, is_stack, one_by_one, stacked_apart
from tqcli.layouts.originals import original_weights
from tqcli.weights import read_elements

BLOCK = "model.language_model.layers.1.experts"
CONFIG = {"model_type": "gemma4", "text_config": {"num_hidden_layers": 2, "num_experts": 4}}


@pytest.fixture(scope="module")
def folder(gemma_folder):
    return LocalFolder(gemma_folder)


@pytest.fixture(scope="module")
def originals(folder):
    checkpoint = open_checkpoint(folder)
    return original_weights(checkpoint, find(checkpoint.config))


@pytest.fixture(scope="module")
def single(originals):
    """Every stack cut into experts."""
    return [one for weight in originals for one in (one_by_one(weight) if is_stack(weight) else (weight,))]


def elements(folder, weight):
    return read_elements(folder, weight, 0, weight.rows).reshape(weight.shape)


def by_name(weights):
    return {weight.name: weight for weight in weights}


def test_only_experts_in_one_tensor_are_a_stack(originals):
    stacks = {weight.name.rpartition(".")[2] for weight in originals if is_stack(weight)}
    assert stacks == {"gate_up_proj", "down_proj"}
    assert all(len(weight.shape) == 3 for weight in originals if is_stack(weight))
    assert not [weight for weight in originals if is_stack(weight) and ".experts." not in weight.name]


def test_each_expert_has_its_rows(folder, originals, single):
    whole, found = by_name(originals), by_name(single)
    gate_up, down = (elements(folder, whole[f"{BLOCK}.{name}"]) for name in ("gate_up_proj", "down_proj"))
    for expert in range(4):
        expected = {"gate_proj": gate_up[expert, :96], "up_proj": gate_up[expert, 96:], "down_proj": down[expert]}
        for name, rows in expected.items():
            one = found[f"{BLOCK}.{expert}.{name}.weight"]
            assert np.array_equal(elements(folder, one), rows)
            assert (one.role.roles, one.role.expert) == ((f"expert_{name.removesuffix('_proj')}",), expert)
            assert one.selector == f"{BLOCK}.{'down_proj' if name == 'down_proj' else 'gate_up_proj'}"
    assert sum(weight.parameters for weight in single) == sum(weight.parameters for weight in originals)


def test_projections_apart_hold_every_expert(folder, originals):
    gate_up = by_name(originals)[f"{BLOCK}.gate_up_proj"]
    gate, up = stacked_apart(gate_up, "somewhere")
    assert (gate.name, up.name) == ("somewhere.gate_proj.weight", "somewhere.up_proj.weight")
    assert (gate.role.roles, up.role.roles) == (("expert_gate",), ("expert_up",))
    whole = elements(folder, gate_up)
    assert np.array_equal(elements(folder, gate), whole[:, :96])
    assert np.array_equal(elements(folder, up), whole[:, 96:])


@settings(max_examples=10, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_fused_again_they_are_the_originals(order, folder, originals, single):
    shuffled = list(single)
    order.shuffle(shuffled)
    found = by_name(fused(shuffled, CONFIG))
    assert found.keys() == by_name(originals).keys()
    for weight in originals:
        again = found[weight.name]
        assert (again.shape, again.role, again.dtype) == (weight.shape, weight.role, weight.dtype)
        if is_stack(weight):
            assert again.selector == weight.name
            assert np.array_equal(elements(folder, again), elements(folder, weight))


def test_a_fused_stack_takes_the_place_of_its_first_expert(originals, single):
    assert [weight.name for weight in fused(single, CONFIG)] == [weight.name for weight in originals]


@pytest.mark.parametrize("config", [CONFIG, {}], ids=["counted", "not counted"])
@pytest.mark.parametrize("lost", ["0.gate_proj", "2.up_proj", "3.down_proj"])
def test_a_missing_matrix_is_named(config, lost, single):
    left = [weight for weight in single if weight.name != f"{BLOCK}.{lost}.weight"]
    expert, leaf = lost.split(".")
    with pytest.raises(InputError) as caught:
        fused(left, config)
    assert caught.value.what == f"expert {expert} of `{BLOCK}` has no {leaf}"


def test_the_last_expert_is_missed_where_config_counts(single):
    left = [weight for weight in single if not weight.name.startswith(f"{BLOCK}.3.")]
    with pytest.raises(InputError, match=r"expert 3 of .* has no gate_proj"):
        fused(left, CONFIG)


def test_an_expert_too_many_is_not_dropped(single):
    config = {"text_config": {"num_experts": 3}}
    with pytest.raises(InputError) as caught:
        fused(single, config)
    assert (caught.value.what, caught.value.why) == (
        "`model.language_model.layers.0.experts` has an expert 3",
        "config.json says that there are 3",
    )


def test_a_layer_without_experts_is_left_alone(single):
    dense = [weight for weight in single if weight.role.expert is None]
    assert fused(dense, CONFIG) == tuple(dense)


@pytest.mark.parametrize(
    "change",
    [{"shape": (128, 95)}, {"shape": (64, 96)}, {"dtype": "F32"}, {"shape": (128 * 96,)}, {"shape": (2, 64, 96)}],
)
def test_experts_that_differ_are_refused(change, single):
    """Read as one, rows of another width or dtype would be rubbish."""
    name = f"{BLOCK}.1.down_proj.weight"
    changed = [replace(weight, **change) if weight.name == name else weight for weight in single]
    with pytest.raises(InputError, match="differ in shape"):
        fused(changed, CONFIG)


@pytest.mark.parametrize("shape", [(128 * 96,), (2, 64, 96)])
def test_experts_that_are_no_matrices_are_refused(shape, single):
    changed = [
        replace(weight, shape=shape) if weight.name.endswith("down_proj.weight") and weight.role.expert is not None
        else weight
        for weight in single
    ]  # fmt: skip
    with pytest.raises(InputError, match="differ in shape"):
        fused(changed, CONFIG)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"num_experts": 8}, 8),
        ({"num_local_experts": 8}, 8),
        ({"n_routed_experts": 8}, 8),
        ({"num_experts": 1, "text_config": {"num_experts": 8}}, 8),
        ({"text_config": None, "num_experts": 8}, 8),
        ({"num_experts": "8"}, None),
        ({"num_experts": True}, None),
        ({"num_experts": -1}, None),
        ({}, None),
    ],
)
def test_how_many_experts_config_says(config, count):
    assert expert_count(config) == count


def test_a_folder_with_experts_of_two_dtypes_is_refused(tmp_path):
    """Such as one expert that was left in F32: its bytes must not be taken for BF16."""
    tensors = {name: one for name, one in checkpoints.gemma_tensors().items() if ".experts." not in name}
    for layer in range(2):
        for expert in range(4):
            prefix = f"model.language_model.layers.{layer}.experts.{expert}."
            dtype = "F32" if expert == 2 else "BF16"
            tensors |= {f"{prefix}{one}_proj.weight": checkpoints.tensor((96, 128), dtype) for one in ("gate", "up")}
            tensors[f"{prefix}down_proj.weight"] = checkpoints.tensor((128, 96))
    config = checkpoints.GEMMA_CONFIG | {"quantization_config": {"quant_method": "compressed-tensors"}}
    checkpoints.write_checkpoint(tmp_path / "model", config, tensors)
    checkpoint = open_checkpoint(LocalFolder(tmp_path / "model"))
    with pytest.raises(InputError, match=r"experts of .*layers\.0\.experts` differ in shape or dtype"):
        original_weights(checkpoint, find(checkpoint.config))
