"""HLWQ folders of every published kind, read by the names and sizes of their tensors."""

import json

import numpy as np
import pytest
from support import checkpoints
from support.command import succeed
from support.hlwq_folders import TINY, WHOLE, Q, contents, dotted, folder_of, opened, tiny_sample, triple
from support.hlwq_samples import LAYOUTS

from tqcli.architectures.base import find
from tqcli.checkpoint.storage import LocalFolder
from tqcli.codec.hlwq_tables import levels
from tqcli.errors import InputError
from tqcli.formats.hlwq import Hlwq
from tqcli.formats.hlwq_legacy import HlwqLegacy
from tqcli.hub.base_model import open_model
from tqcli.layouts.originals import original_weights
from tqcli.packed import decode_rows
from tqcli.readers import hlwq
from tqcli.readers.find import read
from tqcli.weights import read_rows


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    return {layout: tiny_sample(layout, root / layout) for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_of_every_layout_decodes_under_its_name(samples, layout):
    sample = samples[layout]
    checkpoint = open_model(LocalFolder(sample.folder), str(TINY))
    weights = {one.name: one for one in original_weights(checkpoint, find(checkpoint.config))}
    assert weights.keys() == opened(TINY).tensors.keys()
    assert len(sample.decoded) > 40
    for name, expected in sample.decoded.items():
        weight = weights[name]
        assert weight.shape == expected.shape
        assert weight.dtype == "BF16"
        rows = [decode_rows(checkpoint.storage, run.source, run.first, run.first + run.rows) for run in weight.runs]
        np.testing.assert_array_equal(np.concatenate(rows), expected.reshape(weight.rows, -1))
    for name, expected in sample.plain.items():
        found = read_rows(checkpoint.storage, weights[name], 0, weights[name].rows)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("layout", WHOLE)
def test_whole_folders_need_no_base(samples, layout):
    checkpoint = open_model(LocalFolder(samples[layout].folder))
    weights = original_weights(checkpoint, find(checkpoint.config))
    assert {one.name for one in weights} == opened(TINY).tensors.keys()


FILE = "which the file holds"
MEANT = "which published files mean"
KINDS = {
    "polar_engine_v4": {f"26 polar_engine, indices as bytes; levels `unbounded`, {FILE}",
                        f"18 polar_engine, indices as half-blocks; levels `unbounded`, {FILE}"},
    "polar_engine_v5": {f"20 polar_engine, indices as lowest-first; levels `unbounded`, {FILE}",
                        f"18 polar_engine, indices as half-blocks; levels `unbounded`, {FILE}",
                        f"6 polar_engine, indices as bytes; levels `unbounded`, {FILE}"},
    "v5_notebook": {f"44 polar_engine, indices as bytes; levels `truncated`, {FILE}"},
    "unpacked": {f"41 unpacked, indices as bytes; levels `truncated`, {MEANT}"},
    "multi": {f"41 bit-packed; levels `truncated`, {MEANT}"},
    "hlwq": {f"108 bit-packed; levels `truncated`, {MEANT}"},
    "hlwq_underscored": {f"108 bit-packed; levels `truncated`, {MEANT}"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kind_is_told(samples, layout):
    checkpoint = open_model(LocalFolder(samples[layout].folder), str(TINY))
    assert {note.replace(" weights are HLWQ,", "") for note in read(checkpoint).notes} == KINDS[layout]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("suffix", [".weight", "__weight", ""])
def test_the_width_is_told_by_sizes(tmp_path, bits, suffix):
    key = f"{Q}{suffix}" if suffix != "__weight" else f"{Q.replace('.', '__')}__weight"
    tensors, expected = triple(key, bits=bits)
    folder = folder_of(tmp_path / "PQ3", tensors)
    packed = contents(folder).packed
    assert list(packed) == [f"{Q}.weight"]
    assert packed[f"{Q}.weight"].format == Hlwq.model_validate({"bits": bits})
    assert packed[f"{Q}.weight"].shape == (4, 200)
    np.testing.assert_array_equal(decode_rows(LocalFolder(folder), packed[f"{Q}.weight"], 1, 3), expected[1:3])


FUSED = "model.language_model.layers.0.experts.gate_up_proj"
MIXTURE = {"model_type": "gemma4", "text_config": {"num_hidden_layers": 1, "num_experts": 11}}


def eleven(form: str, experts=range(11)) -> dict[str, checkpoints.Tensor]:
    """Expert e holds rows of norm 1 + e, written in an order of no meaning."""
    tensors = {}
    for expert in sorted(experts, key=str):
        weight = np.zeros((2, 128), np.float32)
        weight[:, expert] = 1 + expert
        packed, norms = Hlwq().encode(weight, "F32")
        key = form.format(FUSED, expert)
        tensors[f"{key}__packed"] = ("U8", packed.shape, packed.tobytes())
        tensors[f"{key}__norms"] = ("F16", norms.shape, norms.tobytes())
        tensors[f"{key}__meta"] = ("I64", (5,), np.array([2, 1, 128, 256, 128]).tobytes())
    return tensors


@pytest.mark.parametrize("form", ["{}_e{}", "{}_e{}.weight", "{}.weight_e{}", "{}__weight_e{}"])
def test_experts_are_ordered_by_number(tmp_path, form):
    checkpoint = opened(folder_of(tmp_path / "out", eleven(form), config=MIXTURE))
    (weight,) = original_weights(checkpoint, find(checkpoint.config))
    assert (weight.name, weight.shape) == (FUSED, (11, 2, 128))
    rows = read_rows(checkpoint.storage, weight, 0, 22)
    assert list(rows.argmax(axis=1)) == [row // 2 for row in range(22)]


@pytest.mark.parametrize(
    ("experts", "message"),
    [({0, 1, 3}, "has no expert 2"), (range(10), "has no expert 10"), (range(12), "has 12 experts")],
)
def test_experts_that_are_not_those_of_the_model(tmp_path, experts, message):
    checkpoint = opened(folder_of(tmp_path / "out", eleven("{}_e{}", experts), config=MIXTURE))
    with pytest.raises(InputError, match=f"`{FUSED}` {message}"):
        original_weights(checkpoint, find(checkpoint.config))


def test_experts_of_different_shapes(tmp_path):
    tensors = eleven("{}_e{}", range(10)) | triple(f"{FUSED}_e10", rows=3, columns=128)[0]
    checkpoint = opened(folder_of(tmp_path / "out", tensors, config=MIXTURE))
    with pytest.raises(InputError, match="differ in shape"):
        original_weights(checkpoint, find(checkpoint.config))


def test_a_tied_head_is_the_embedding(tmp_path):
    layer = "model.language_model.layers.0.self_attn.q_proj.weight"
    tensors = triple("lm_head.weight")[0] | triple(layer)[0]
    tied = {"model_type": "gemma4", "tie_word_embeddings": True, "text_config": {"num_hidden_layers": 1}}
    found = contents(folder_of(tmp_path / "tied", tensors, config=tied)).packed
    assert list(found) == ["model.language_model.embed_tokens.weight", layer]
    untied = contents(folder_of(tmp_path / "untied", tensors, config=tied | {"tie_word_embeddings": False})).packed
    assert list(untied) == ["lm_head.weight", layer]


def test_a_folder_says_its_table(tmp_path):
    folder = folder_of(tmp_path / "out", triple(table="lloyd-max")[0], hlwq_config={"table": "lloyd-max"})
    found = contents(folder)
    assert found.packed[f"{Q}.weight"].format == Hlwq(table="lloyd-max")
    assert found.notes == ("1 weight is HLWQ, bit-packed; levels `lloyd-max`, as the folder says",)


def test_columns_of_which_no_file_tells_stay_open(tmp_path):
    folder = folder_of(tmp_path / "out", triple(numbers=4)[0])
    packed = contents(folder).packed[f"{Q}.weight"]
    assert (packed.shape, packed.columns, packed.padding) == (None, 256, 127)
    checkpoint = opened(folder)
    with pytest.raises(InputError, match=r"shape of .* is not known"):
        original_weights(checkpoint, find(checkpoint.config))


def test_columns_that_polar_config_tells(tmp_path):
    polar = {"layers": {Q: {"in_features": 190}}}
    folder = folder_of(tmp_path / "out", triple(numbers=4)[0], polar_config=polar)
    assert contents(folder).packed[f"{Q}.weight"].shape == (4, 190)


def test_norms_in_one_row(tmp_path):
    tensors, expected = triple()
    dtype, _, data = tensors[f"{Q}.weight__norms"]
    folder = folder_of(tmp_path / "out", tensors | {f"{Q}.weight__norms": (dtype, (8,), data)})
    found = decode_rows(LocalFolder(folder), contents(folder).packed[f"{Q}.weight"], 0, 4)
    np.testing.assert_array_equal(found, expected)


def test_levels_that_are_no_known_table(tmp_path):
    own = (levels("truncated", 3) * np.float32(1.1)).astype(np.float32)
    found = contents(folder_of(tmp_path / "out", dotted(own)))
    stored_as = found.packed[f"{Q}.weight"].format
    assert isinstance(stored_as, HlwqLegacy)
    assert (stored_as.label, stored_as.table) == ("hlwq3 own levels bytes", None)
    assert found.notes == ("1 weight is HLWQ, polar_engine, indices as bytes; levels of its own, which the file holds",)


@pytest.mark.parametrize("name", ["norms", "a.norms", "a.ct", "a__b", "a__metadata", "codes", "a_e0"])
def test_names_that_only_look_alike(tmp_path, name):
    assert contents(folder_of(tmp_path / "out", {name: checkpoints.tensor((4, 4))})).layout == "plain"


@pytest.mark.parametrize(("key", "dtype"), [("dtype", "F16"), ("torch_dtype", "F32")])
def test_decodes_are_rounded_to_the_models_dtype(tmp_path, key, dtype):
    said = {"F16": "float16", "F32": "float32"}[dtype]
    folder = folder_of(tmp_path / "out", triple()[0], config={"model_type": "llama", key: said})
    assert contents(folder).packed[f"{Q}.weight"].dtype == dtype


def test_sizes_are_read_at_once(tmp_path, monkeypatch):
    """They lie side by side in folders of ours, and a Hub model has tens of thousands of them."""
    succeed("convert", TINY, tmp_path / "out", "-r", "hlwq-q5")
    checkpoint = opened(tmp_path / "out")
    reads = []
    original = checkpoint.storage.read
    monkeypatch.setattr(checkpoint.storage, "read", lambda *place: reads.append(place) or original(*place))
    found = hlwq.packed_tensors(checkpoint, json.loads((tmp_path / "out" / "tq_config.json").read_text()))
    assert len(found) == 91
    assert [place[2] for place in reads if place[0] == "polar_state.safetensors"] == [91 * 40]
