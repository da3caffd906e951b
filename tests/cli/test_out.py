"""Numbers, names and tables as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqcli.cli.options import parse_size
from tqcli.cli.out import Out, OutputFormat, count, printable, shards, size
from tqcli.errors import InputError


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_333_000_000, "12.33 GB"), (10**15, "1000.00 TB")],
)
def test_sizes(nbytes, expected):
    assert size(nbytes) == expected


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "0"), (999, "999"), (1500, "1.50K"), (2_500_000, "2.50M"), (25_805_936_206, "25.81B")]
)
def test_counts(number, expected):
    assert count(number) == expected


def test_shards():
    assert [shards(number) for number in (1, 2)] == ["1 shard", "2 shards"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5GB", 5 * 10**9), ("5gb", 5 * 10**9), ("2 GiB", 2 << 30), ("1.5MB", 1_500_000), ("123", 123), ("7B", 7),
        ("1TB", 10**12), ("1TiB", 1 << 40), (" 1KB ", 1000),
    ],
)  # fmt: skip
def test_sizes_that_people_write(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 apples", "1e9", "5GBB", "٥GB", "0", "0.0GB", "1..5GB", "nan"])
def test_sizes_that_are_none(text):
    with pytest.raises(InputError):
        parse_size(text)


@given(st.text(st.characters()))
def test_whatever_comes_is_one_harmless_line(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


def test_a_table_wraps_its_last_column_only(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    Out(OutputFormat.human).table(("a", "b"), [("x" * 8, "one two three four five six"), ("y", "z-" * 15)], right=(0,))
    assert capsys.readouterr().out.splitlines() == [
        "       a  b",
        "xxxxxxxx  one two three four",
        "          five six",
        "       y  " + "z-" * 15,
    ]


def test_machines_get_no_tables(capsys):
    for form in (OutputFormat.json, OutputFormat.quiet):
        Out(form).table(("a",), [("b",)])
        Out(form).line("c")
    assert capsys.readouterr().out == ""
