"""The text form of a cache, and what is refused."""

import math

import pytest

from tqcli.errors import InputError
from tqcli.kv.settings import CacheSettings, Widths, parse_widths, read_settings


@pytest.mark.parametrize("keys", range(2, 9))
@pytest.mark.parametrize("values", range(2, 9))
def test_every_pair_of_widths_is_read_as_it_is_written(keys, values):
    assert parse_widths(f"k{keys}v{values}") == Widths(keys, values)
    assert str(Widths(keys, values)) == f"k{keys}v{values}"


def test_none_is_full_precision():
    assert parse_widths("none") is None


@pytest.mark.parametrize(
    "text",
    ["", "k4", "v4", "k4v", "4", "K4V3", "k4v3 ", "k4.5v3", "k-4v3", "fp8", "None", "v3k4", "k1v4", "k4v9", "k16v16"],
)
def test_other_text_is_refused_with_what_would_do(text):
    with pytest.raises(InputError) as caught:
        parse_widths(text)
    assert "k4v3" in caught.value.fix


@pytest.mark.parametrize("value", [None, 4, True, ("k4", "v3")])
def test_what_is_not_text_is_refused(value):
    with pytest.raises(InputError):
        parse_widths(value)


def test_options_are_read():
    found = read_settings("k3v2", boundary_kv="k8v8", boundary_layers=2, residual_tokens=math.inf, sliding=True)
    assert found == CacheSettings(
        Widths(3, 2), boundary_layers=2, boundary_widths=Widths(8, 8), residual_tokens=None, sliding=True
    )
    assert read_settings(found) is found


@pytest.mark.parametrize(
    "options",
    [
        {"sink_tokens": -1}, {"residual_tokens": -1}, {"residual_tokens": 1.5}, {"block_tokens": 0}, {"seed": -1},
        {"boundary_layers": -1}, {"boundary_kv": "k9v9"}, {"scale": "unbiased"}, {"sinks": 4}, {"widths": None},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        read_settings("k4v3", **options)


def test_settings_and_options_exclude_each_other():
    with pytest.raises(InputError):
        read_settings(read_settings("k4v3"), sink_tokens=2)


def test_the_layers_at_the_boundary():
    settings = read_settings("k4v3", boundary_layers=2, boundary_kv="k8v8")
    assert [str(settings.widths_of(layer, 6)) for layer in range(6)] == ["k8v8", "k8v8", "k4v3", "k4v3", "k8v8", "k8v8"]
    assert [read_settings("k4v3", boundary_layers=1).widths_of(layer, 3) for layer in range(3)] == [
        None,
        Widths(4, 3),
        None,
    ]
    assert read_settings("none", boundary_layers=1, boundary_kv="k8v8").widths_of(0, 3) is None
    assert read_settings("k4v3", residual_tokens=None).widths_of(0, 3) is None
