"""Model cards are strangers' files: whatever is in one, it is read within bounds, or refused in one sentence."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_hub import FakeRepository

from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError, MachineError, TqError
from tqcli.hub.card_source import SourceCard, base_of, read_card, revision_of, source_card, with_licence


def folder(tmp_path, text):
    path = tmp_path / "folder"
    path.mkdir(exist_ok=True)
    (path / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    return LocalFolder(path)


def test_what_is_read(tmp_path):
    found = read_card(
        folder(
            tmp_path,
            "---\r\nlicense: [other]\r\nlicense_name: My Licence\r\nlicense_link: LICENSE\r\nlanguage: [en, de, 3]\r\n"
            "pipeline_tag: text-generation\r\nextra_gated_prompt: |\r\n  a\r\n  b\r\nmodel-index: [1]\r\n---\r\n",
        )
    )
    assert found == SourceCard(
        "other", "My Licence", "LICENSE", ("en", "de"), "text-generation", {"extra_gated_prompt": "a\nb\n"}
    )


@pytest.mark.parametrize(
    "text", ["", "# no head", "text\n---\nlicense: mit\n---\n", "---\n- a list\n---\n", "---\n---\n"]
)
def test_cards_that_say_nothing(tmp_path, text):
    assert read_card(folder(tmp_path, text)) == SourceCard()


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{one}: &{one} [{','.join([f'*{before}'] * 10)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("---\nlicense: mit\n", "has no end"),
        ("---\nlicense: mit\n" + "a" * 70_000 + "\n---\n", "has no end"),
        ("---\nlicense: [\n---\n", "not valid YAML"),
        ("---\nlicense: !!python/object/apply:os.system ['true']\n---\n", "not valid YAML"),
        ("---\nlicense: " + "[" * 5000 + "\n---\n", "not valid YAML"),
        ("---\nlicense: 'a b'\n---\n", "no identifier"),
        ('---\nlicense: "a\\e[31m"\n---\n', "no identifier"),
        ("---\nlicense: {a: 1}\n---\n", "no identifier"),
        ("---\nlicense: [mit, gemma]\n---\n", "no identifier"),
        ("---\nextra_gated_prompt: " + "a" * 20_000 + "\n---\n", "too long"),
        (f"---\n{LAUGHS}extra_gated_fields: *i\n---\n", "too long"),
        ("---\nextra_gated_fields: &a [*a]\n---\n", "too long"),
        ("---\nextra_gated_fields: 2001-01-01\n---\n", "too long"),
    ],
)
def test_cards_that_are_refused(tmp_path, text, says):
    with pytest.raises(InputError) as caught:
        read_card(folder(tmp_path, text))
    assert says in str(caught.value)
    assert "\x1b" not in str(caught.value)


@given(st.binary(max_size=300))
def test_no_card_is_a_bug(tmp_path_factory, data):
    with suppress(TqError):
        read_card(folder(tmp_path_factory.getbasetemp(), b"---\n" + data + b"\n---\n"))


def test_the_bases_card_is_asked_for_where_the_folder_has_none(hub, tmp_path):
    repository = hub.repositories["org/model"] = FakeRepository()
    first = repository.commit({"README.md": b"---\nlicense: mit\n---\n"})
    repository.commit({"README.md": b"---\nlicense: gemma\n---\n"})
    nothing = folder(tmp_path, "")
    assert source_card(nothing, "org/model", None).licence == "gemma"
    assert source_card(nothing, "org/model", first).licence == "mit"
    assert source_card(nothing, "org/gone", None) == SourceCard()
    assert source_card(nothing, "", None) == SourceCard()


def test_a_card_in_the_folder_asks_nobody(hub, tmp_path):
    assert source_card(folder(tmp_path, "---\nlicense: mit\n---\n"), "org/model", None).licence == "mit"
    assert not hub.requests


def test_no_network_is_not_no_licence(hub, tmp_path):
    hub.listing_failures = 1000
    with pytest.raises(MachineError):
        source_card(folder(tmp_path, ""), "org/model", None)


@pytest.mark.parametrize("said", ["", "a b", "a\nb", "x" * 65, "MIT\x1b[31m", "é"])
def test_licences_that_are_no_names(said):
    with pytest.raises(InputError):
        with_licence(SourceCard(), said)


def test_a_licence_replaces_no_name_of_another():
    assert with_licence(SourceCard(name="x", link="y", pipeline="p"), "mit") == SourceCard("mit", pipeline="p")


def test_the_base():
    record = {"original_model": "org/model", "source": {"model": "org/model", "revision": "abc"}}
    assert base_of(record, None, "me/name") == "org/model"
    assert base_of(record, "other/one", "me/name") == "other/one"
    assert base_of(record, "none", "me/name") == ""
    assert revision_of(record, "org/model") == "abc"
    assert revision_of(record, "other/one") is None
    assert revision_of({}, "org/model") is None
    for wrong in (
        {},
        {"original_model": "../../etc"},
        {"original_model": ["org/model"]},
        {"original_model": "x" * 999},
    ):
        with pytest.raises(InputError):
            base_of(wrong, None, "me/name")
