"""Stop strings: nothing of them is said, however the text is cut into pieces."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tqcli.server.stops import StopStrings

_TEXT = st.text("abc", max_size=30)
_STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def said(pieces, stops) -> tuple[str, bool]:
    stop_strings = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += stop_strings.add(piece)
    return text + ("" if stop_strings.stopped else stop_strings.end()), stop_strings.stopped


def expected(text: str, stops) -> tuple[str, bool]:
    """The plain way: the shortest beginning that ends with a stop string, without the longest one that it ends with."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(_TEXT, _STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_the_first_complete_one_cuts(text, stops, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in itertools.pairwise(edges)]
    assert said(pieces, stops) == expected(text, stops)


@given(_TEXT, _STOPS)
def test_no_more_is_held_back_than_may_be_needed(text, stops):
    stop_strings = StopStrings(stops)
    given_so_far = stop_strings.add(text)
    held = text[len(given_so_far) :]
    if not stop_strings.stopped:
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_nothing_follows_a_stop():
    stops = StopStrings(["END"])
    assert [stops.add(piece) for piece in ("an EN", "D and more", "x")] == ["an ", "", ""]
    assert stops.end() == ""
