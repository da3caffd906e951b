"""Log probabilities go with the text that their tokens begin, and a stop string takes its tokens with it."""

from hypothesis import given
from hypothesis import strategies as st

from tqcli.server.sampling import Picked
from tqcli.server.writing import Writer, Written


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def write(text: bytes, stops, *, logprobs: bool = True) -> tuple[list[Written], bool]:
    writer = Writer(decode, (), stops, logprobs=logprobs)
    pieces = []
    for byte in text:
        pieces.append(writer.add(Picked(byte)))
        if writer.stopped:
            break
    pieces.append(writer.end())
    return pieces, writer.stopped


def joined(pieces) -> tuple[str, bytes]:
    text = "".join(piece.text for piece in pieces)
    return text, bytes(picked.token for piece in pieces for picked, _ in piece.tokens)


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=2))
def test_tokens_are_those_of_the_text(text, stops):
    said, tokens = joined(write(text.encode(), stops)[0])
    assert tokens == said.encode()


@given(st.text(max_size=20))
def test_every_token_is_told_when_nothing_is_cut(text):
    pieces, stopped = write(text.encode(), [])
    assert joined(pieces) == (text, text.encode())
    assert not stopped
    places = [place for piece in pieces for _, place in piece.tokens]
    assert places == sorted(places)


def test_a_stop_string_cuts_its_tokens():
    pieces, stopped = write(b"one STOP two", ["STOP"])
    assert stopped
    assert joined(pieces) == ("one ", b"one ")


def test_a_stop_string_in_what_was_held_back_to_the_end():
    pieces, stopped = write(b"x\xff", ["\ufffd"])
    assert (joined(pieces), stopped) == (("x", b"x"), True)


def test_without_log_probabilities_there_are_no_tokens():
    assert all(piece.tokens == () for piece in write(b"text", [], logprobs=False)[0])
