"""Tokens one by one give the text of all of them, and never half a character."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tqcli.server.detokenizer import Detokenizer


def pieces(tokens, decode, prompt=()) -> list[str]:
    detokenizer = Detokenizer(decode, prompt)
    return [*(detokenizer.add(token) for token in tokens), detokenizer.end()]


def byte_decoder(tokens: list[int]) -> str:
    """The hardest tokenizer: every byte is a token."""
    return bytes(tokens).decode("utf-8", errors="replace")


@given(st.text(max_size=40), st.text(max_size=10))
def test_bytes_become_whole_characters(text, prompt):
    found = pieces(text.encode(), byte_decoder, prompt.encode())
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in found)


@given(st.binary(max_size=40))
def test_bytes_that_are_no_text(raw):
    assert "".join(pieces(raw, byte_decoder)) == byte_decoder(list(raw))


@given(st.text("hello wörld 日本 🙂\n", max_size=40))
@settings(deadline=None)
def test_a_real_tokenizer(tokenizer, text):
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokens, tokenizer.decode)) == tokenizer.decode(tokens)


def test_a_space_that_only_shows_after_another_word_stays():
    """Tokenizers of SentencePiece strip it at the beginning of a text, and an answer is none."""
    words = {0: "▁hello", 1: "▁world"}

    def decode(tokens):
        return "".join(words[token] for token in tokens).replace("▁", " ").removeprefix(" ")

    assert pieces([1, 1], decode, prompt=[0]) == [" world", " world", ""]
    assert pieces([1, 1], decode) == ["world", " world", ""]
