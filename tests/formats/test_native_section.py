"""`quantization_config` of a native folder: what is written is what is read, for any mix of formats."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqcli.errors import InputError
from tqcli.formats.native_section import entry, levels_of, read_format, section
from tqcli.formats.tq import Tq
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform

FORMATS = st.one_of(
    st.builds(
        Tq, bits=st.sampled_from([2, 3, 4]), group_size=st.sampled_from([64, 128]), seed=st.integers(0, 2**32 - 1)
    ),
    st.builds(
        Trellis,
        bits=st.sampled_from([2, 3, 4]),
        rotation=st.sampled_from(["hadamard", "none"]),
        seed=st.integers(0, 2**32 - 1),
        candidates=st.sampled_from([1, 3, 5, 7]),
    ),
    st.builds(Uniform, bits=st.sampled_from([4, 8]), group_size=st.sampled_from([32, 64, 128, 256])),
)


@given(default=FORMATS, formats=st.dictionaries(st.text(max_size=5), FORMATS, max_size=6))
def test_what_is_written_is_read(default, formats):
    written = json.loads(json.dumps(section(default, formats)))
    found = read_format(written, written, "the default")
    assert (entry(found), levels_of(found)) == (entry(default), levels_of(default))
    for name, stored_as in formats.items():
        said = written.get("tensors", {}).get(name, written)
        found = read_format(said, written, name)
        assert (entry(found), levels_of(found)) == (entry(stored_as), levels_of(stored_as))


@given(default=FORMATS, formats=st.dictionaries(st.text(max_size=5), FORMATS, max_size=6))
def test_the_version_tells_readers_of_the_first_to_stop(default, formats):
    every = [default, *formats.values()]
    written = section(default, formats)
    old = all(isinstance(one, Tq) for one in every)
    assert written["format_version"] == (1 if old else 2)
    assert ("format" in written) != old


def test_a_folder_of_the_first_version_keeps_its_words():
    written = section(Tq(bits=3), {"a": Tq(bits=3), "b": Tq(bits=4)})
    del written["tool"]
    assert written == {
        "quant_method": "turboquant",
        "format_version": 1,
        "bits": 3,
        "group_size": 128,
        "seed": 42,
        "tensors": {"b": {"bits": 4, "group_size": 128, "seed": 42}},
    }


def test_two_codebooks_for_one_width():
    other = Trellis(bits=3, codebook="01" * 256)
    with pytest.raises(InputError, match="two codebooks"):
        section(Trellis(bits=3), {"a": Trellis(bits=3), "b": other})


@pytest.mark.parametrize(
    "said",
    [
        {"format": "sparse"},
        {"format": ["trellis"]},
        {"format": "trellis"},
        {"format": "trellis", "bits": 5},
        {"format": "trellis", "bits": 3, "seed": "42"},
        {"format": "trellis", "bits": [3]},
        {"format": "trellis", "bits": 4},
        {"format": "uniform", "bits": 3},
        {"bits": 3, "group_size": 7},
    ],
)
def test_words_that_mean_nothing(said):
    with pytest.raises(InputError, match="`w`"):
        read_format(said, {"codebooks": {"3": Trellis(bits=3).levels, "5": "00" * 256}}, "`w`")
