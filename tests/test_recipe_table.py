"""The recipes side by side: sizes that others computed by hand, errors that the codecs' authors measured."""

import json

import pytest

from tqcli.errors import InputError
from tqcli.formats.int4 import Int4
from tqcli.formats.mlx import Mlx
from tqcli.formats.nvfp4 import NvFp4
from tqcli.formats.tq import Tq
from tqcli.job import DEFAULT_SHARD_BYTES
from tqcli.recipe import builtin_recipes, recipes_folder
from tqcli.recipe_table import gaussian_error, recipe_rows
from tqcli.reference_model import reference_model


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in recipe_rows()}


def test_the_reference_model_is_gemma_4_26b():
    model = reference_model()
    assert len(model.tensors) == 1013
    assert sum(tensor.parameters for tensor in model.tensors.values()) == 25_805_936_206
    assert sum(tensor.nbytes for tensor in model.tensors.values()) == 51_611_872_412
    experts = model.tensors["model.language_model.layers.29.experts.gate_up_proj"]
    assert experts.shape == (128, 1408, 2816)


def test_its_weights_cannot_be_read():
    tensor = next(iter(reference_model().tensors.values()))
    with pytest.raises(InputError, match="known by its shapes alone"):
        reference_model().storage.read(tensor.file, tensor.offset, 2)


def test_every_recipe_has_a_row(rows):
    assert rows.keys() == builtin_recipes().keys()
    assert list(rows) == sorted(rows, key=lambda name: (rows[name].file_bytes, name))


def test_sizes(rows):
    # llm-compressor's 24198 tensors of 27,161,975,452 bytes; the policy's 3.8025 bits; the plain model.
    header = rows["fp8-dynamic"].file_bytes - 27_161_975_452
    assert 0 < header < 8_000_000
    assert rows["config-i"].bits_per_weight == pytest.approx(3.8025, abs=2e-4)
    assert rows["config-i-safe"].bits_per_weight == pytest.approx(3.907, abs=1e-3)
    assert rows["bf16"].bits_per_weight == 16.0
    assert rows["tq3"].file_bytes == pytest.approx(12.87e9, rel=1e-3)
    assert DEFAULT_SHARD_BYTES == 5_000_000_000


@pytest.mark.parametrize(
    ("stored_as", "expected"),
    [
        (Tq(bits=3, scale="norm"), 0.0339),
        (Mlx(bits=2), 0.1555),
        (Mlx(bits=4), 0.00828),
        (Mlx(bits=2, scale="least-squares"), 0.1025),
        (Int4(group_size=64), 0.0089),
        (NvFp4(), 0.0091),
    ],
)
def test_errors_on_gaussian_weights(stored_as, expected):
    assert gaussian_error(stored_as) == pytest.approx(expected, rel=0.03)


def test_what_compresses_nothing_has_no_error(rows):
    assert rows["bf16"].gaussian_error is None
    assert all(row.gaussian_error for name, row in rows.items() if name != "bf16")


def test_errors_on_trained_weights_were_measured_for_every_format(rows):
    measured = json.loads((recipes_folder() / "trained-errors.json").read_text())
    assert measured["model"]
    assert measured["command"].startswith("scripts/measure_trained_errors")
    for name, row in rows.items():
        if row.gaussian_error is not None:
            # Trained weights have heavier tails than normal ones; no format loses several times as much on them.
            assert 0.5 < row.trained_error / row.gaussian_error < 2, name
