"""Every fault in a folder of trellis and uniform weights is an error that names the weight, never other numbers."""

import json

import pytest
import torch
from support import mixed, pack
from transformers import AutoModelForCausalLM

from tqcli.errors import InputError
from tqcli.formats.native import PAIRS
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform

Q = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
EXPERT = "model.layers.0.mlp.experts.5.up_proj.weight"
FUSED = "model.language_model.layers.1.experts.gate_up_proj"
UP = "model.layers.1.mlp.up_proj.weight"
ROUTER = "model.layers.0.mlp.gate.weight"
# One of each kind of home: linear, table, one expert of many, experts in one piece, decoded while loading.
WEIGHTS = [("llama", Q), ("llama", EMBEDDING), ("llama", UP), ("qwen3_moe", EXPERT), ("gemma4", FUSED)]
WEIGHTS += [("qwen3_moe", ROUTER)]
IDS = [f"{model}-{name.rpartition('layers.')[2]}" for model, name in WEIGHTS]


@pytest.fixture(scope="module")
def samples(sources):
    """Model -> tensors, formats; packed once."""
    return {name: mixed.pack_tensors(sources[name]) for name in ("llama", "qwen3_moe", "gemma4")}


@pytest.fixture
def build(sources, samples, tmp_path):
    """A function that writes the folder after tensors and section were changed."""

    def written(name, change=lambda tensors: None, section=lambda said: None, shards=3):
        tensors, formats = dict(samples[name][0]), samples[name][1]
        change(tensors)
        said = mixed.section(mixed.DEFAULT, formats)
        section(said)
        return pack.write(sources[name], tmp_path / "x", tensors, shards=shards, section=said)

    return written


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def refused(folder, *words):
    with pytest.raises(InputError) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)


def endings(samples, name, weight):
    return PAIRS[samples[name][1][weight].format]


@pytest.mark.parametrize(("name", "weight"), WEIGHTS, ids=IDS)
@pytest.mark.parametrize("half", [0, 1])
def test_half_of_a_pair_is_missing(name, weight, half, build, samples):
    gone = weight + endings(samples, name, weight)[half]
    refused(build(name, lambda tensors: tensors.pop(gone)), gone)


@pytest.mark.parametrize(("name", "weight"), WEIGHTS, ids=IDS)
def test_a_whole_pair_is_missing(name, weight, build, samples):
    def change(tensors):
        for ending in endings(samples, name, weight):
            del tensors[weight + ending]

    refused(build(name, change), weight)


@pytest.mark.parametrize(("name", "weight"), WEIGHTS, ids=IDS)
def test_a_pair_has_another_name(name, weight, build, samples):
    other = weight.replace("_proj", "_pro").replace("embed_tokens", "embed_token").replace("mlp.gate.", "mlp.gat.")

    def change(tensors):
        for ending in endings(samples, name, weight):
            tensors[other + ending] = tensors.pop(weight + ending)

    refused(build(name, change), other)


def test_a_name_without_weight(build, samples):
    """Only an early generation of `tq` has such names."""

    def change(tensors):
        for ending in PAIRS["trellis"]:
            tensors[Q.removesuffix(".weight") + ending] = tensors.pop(Q + ending)

    refused(build("llama", change), Q.removesuffix(".weight"), "no place")


@pytest.mark.parametrize("other", ["uniform", "tq"])
def test_a_weight_is_there_in_two_formats(other, build, samples):
    def change(tensors):
        for ending, kind in zip(PAIRS[other], PAIRS["trellis"], strict=True):
            tensors[Q + ending] = tensors[Q + kind].clone()

    refused(build("llama", change), Q, "twice")


def test_a_weight_is_there_packed_and_plain(build):
    refused(build("llama", lambda tensors: tensors.update({Q: torch.zeros(96, 96)})), Q, "twice")


def test_one_pair_too_many(build, samples):
    def change(tensors):
        for ending in PAIRS["trellis"]:
            tensors["model.layers.2.mlp.up_proj.weight" + ending] = tensors[Q + ending].clone()

    refused(build("llama", change), "model.layers.2.mlp.up_proj.weight")


def test_one_expert_too_many(build):
    def change(tensors):
        for key in [key for key in tensors if "layers.0.mlp.experts.3." in key]:
            tensors[key.replace("experts.3.", "experts.12.")] = tensors[key].clone()

    refused(build("qwen3_moe", change), "experts.12.")


CHANGES = {
    "a row less": lambda codes, scales: (codes[:-1], scales[:-1]),
    "a row of codes less": lambda codes, scales: (codes[:-1], scales),
    "a row of scales less": lambda codes, scales: (codes, scales[:-1]),
    "a column less": lambda codes, scales: (codes[:, :-1], scales),
    "a column more": lambda codes, scales: (torch.cat([codes, codes[:, :1]], 1), scales),
    "a group less": lambda codes, scales: (codes, scales[:, :-1]),
    "a group more": lambda codes, scales: (codes, torch.cat([scales, scales[:, :1]], 1)),
    "rows and columns swapped": lambda codes, scales: (codes.T, scales),
    "flat codes": lambda codes, scales: (codes.reshape(-1), scales),
    "three dimensions": lambda codes, scales: (codes[None], scales),
    "codes of another type": lambda codes, scales: (codes.to(torch.int16), scales),
    "codes of a type of as many bits": lambda codes, scales: (
        codes.view(torch.int8 if codes.dtype == torch.uint8 else torch.uint8),
        scales,
    ),
    "scales of another type": lambda codes, scales: (codes, scales.float()),
    "scales of a type of as many bits": lambda codes, scales: (codes, scales.view(torch.bfloat16)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "weight"), WEIGHTS, ids=IDS)
def test_sizes_and_types_do_not_fit(name, weight, change, build, samples):
    first, second = (weight + ending for ending in endings(samples, name, weight))

    def changed(tensors):
        parts = CHANGES[change](tensors[first], tensors[second])
        tensors[first], tensors[second] = (part.contiguous() for part in parts)

    refused(build(name, changed), weight.rpartition(".experts.")[0] or weight)


def set_(**keys):
    return lambda said: said.update(keys)


def entry(name, **keys):
    return lambda said: said["tensors"].update({name: keys})


def book(bits, levels):
    return lambda said: said["codebooks"].update({bits: levels})


GOOD = Trellis(bits=3).levels
SECTIONS = {
    "a version of the future": (set_(format_version=3), ["format version 3"]),
    "a default in a format of the future": (set_(format="spiral"), ["spiral"]),
    "a weight in a format of the future": (entry(Q, format="spiral", bits=3), [Q, "spiral"]),
    "no format of text": (entry(Q, format=3), [Q]),
    "another format than the tensors'": (entry(Q, format="uniform", bits=8, group_size=128), [Q, "uniform"]),
    "tq in place of trellis": (entry(Q, format="tq", bits=3, group_size=128, seed=42), [Q, "tq"]),
    "trellis in place of tq": (
        entry("model.layers.0.self_attn.k_proj.weight", format="trellis", bits=3, rotation="hadamard", seed=42),
        ["k_proj", "trellis"],
    ),
    "two bits for three": (entry(Q, format="trellis", bits=2, rotation="hadamard", seed=42), [Q]),
    "four bits for three": (set_(bits=4), [Q]),
    "four bits for eight": (entry(EMBEDDING, format="uniform", bits=4, group_size=128), [EMBEDDING]),
    "smaller groups": (entry(EMBEDDING, format="uniform", bits=8, group_size=64), [EMBEDDING]),
    "five bits": (entry(Q, format="trellis", bits=5, rotation="hadamard", seed=42), [Q]),
    "bits of text": (entry(Q, format="trellis", bits="3", rotation="hadamard", seed=42), [Q]),
    "another rotation": (entry(Q, format="trellis", bits=3, rotation="fourier", seed=42), [Q, "rotation"]),
    "a seed below zero": (entry(Q, format="trellis", bits=3, rotation="hadamard", seed=-1), [Q, "seed"]),
    "no groups of that size": (entry(EMBEDDING, format="uniform", bits=8, group_size=96), [EMBEDDING]),
    "a weight that is forgotten": (lambda said: said["tensors"].pop(EMBEDDING), [EMBEDDING, "trellis"]),
    "tensors are forgotten": (lambda said: said.pop("tensors"), ["trellis"]),
    "an entry that is no object": (lambda said: said["tensors"].update({Q: [3]}), [Q]),
    "no codebooks": (lambda said: said.pop("codebooks"), ["codebook"]),
    "codebooks in a list": (set_(codebooks=[GOOD]), ["codebook"]),
    "a codebook missing": (lambda said: said["codebooks"].pop("4"), ["gate_proj", "codebook"]),
    "a codebook of text": (book("3", "x" * 512), ["codebook"]),
    "a codebook a level short": (book("3", GOOD[:-2]), ["codebook"]),
    "a codebook a digit short": (book("3", GOOD[:-1]), ["codebook"]),
    "a codebook a level long": (book("3", GOOD + "00"), ["codebook"]),
    "a codebook of numbers": (book("3", [1] * 256), ["codebook"]),
    "a codebook of zeros": (book("3", "00" * 256), ["codebook"]),
}


@pytest.mark.parametrize("case", SECTIONS)
def test_the_section_is_not_as_it_should_be(case, build):
    change, words = SECTIONS[case]
    refused(build("llama", section=change), *words)


@pytest.mark.parametrize("bits", ["2", "3", "4"])
def test_a_level_of_a_codebook_is_altered(bits, sources, samples, tmp_path):
    """Any levels decode to something; the two files must agree on them."""
    tensors, formats = samples["llama"]
    folder = mixed.write(sources["llama"], tmp_path / "x", tensors, formats)
    file = folder / "config.json"
    content = json.loads(file.read_text())
    books = content["quantization_config"]["codebooks"]
    books[bits] = books[bits][:100] + f"{int(books[bits][100], 16) ^ 1:x}" + books[bits][101:]
    file.write_text(json.dumps(content))
    refused(folder, "different codebooks", f"{bits} bits")


@pytest.mark.parametrize("kind", sorted(PAIRS))
@pytest.mark.parametrize("shards", [1, 3])
def test_nothing_says_that_it_is_packed(kind, shards, sources, tmp_path):
    stored_as = {"tq": mixed.Tq(bits=3), "trellis": Trellis(bits=3), "uniform": Uniform()}[kind]
    tensors, _ = mixed.pack_tensors(sources["llama"], lambda name, _: stored_as if name == Q else None)
    refused(pack.write(sources["llama"], tmp_path / "x", tensors, shards=shards), Q, "nothing that says")


def test_parts_of_one_parameter_in_different_formats(sources, samples, build):
    """They lie in one piece in memory: one format."""
    weight = torch.zeros(96, 128, dtype=torch.uint16).numpy()
    stored_as = Uniform(bits=8)

    def change(tensors):
        for ending in PAIRS["trellis"]:
            del tensors[EXPERT + ending]
        for ending, part in zip(PAIRS["uniform"], stored_as.encode(weight, "BF16"), strict=True):
            tensors[EXPERT + ending] = torch.from_numpy(part)

    folder = build("qwen3_moe", change, lambda said: said["tensors"].update({EXPERT: mixed.entry(stored_as)}))
    refused(folder, "gate_up_proj", "different ways")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"format": "tq9_native"}, ["tq9_native"]),
        ({"format_version": 9}, ["version 9"]),
        ({"codebooks": {}}, ["codebook"]),
        ({"tensors": {}}, ["does not fit", "`tq`"]),
        ({"tensors": {Q: 3}}, [Q]),
    ],
)
def test_tq_config_alone_is_not_as_it_should_be(content, words, sources, samples, tmp_path):
    tensors, formats = samples["llama"]
    record = {**mixed.record(formats), **content}
    refused(pack.write(sources["llama"], tmp_path / "x", tensors, tq_config=record), *words)
