"""Recipes: what a file means, what `--set` changes, and messages that name line, key and the nearest legal word."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqcli.architectures.base import Role
from tqcli.documents import recipe_toml
from tqcli.errors import InputError
from tqcli.formats.tq import Tq
from tqcli.layouts.base import layout_of
from tqcli.recipe import Keep, Layers, Override, Recipe, builtin_recipes, load_recipe, parse_change

GOOD = 'summary = "x"\nformat = "tq"\nbits = 3\n'
SHARED = Path(__file__).parents[2] / "shared" / "prototypes" / "recipes" / "bad"


def write(folder: Path, text: str) -> str:
    (folder / "r.toml").write_text(text, encoding="utf-8")
    return "r.toml"


def message(text: str, here: Path, *changes: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(write(here, text), changes)
    return str(caught.value)


def test_the_built_in_recipes():
    recipes = {name: load_recipe(name) for name in builtin_recipes()}
    assert [recipes[name].stored_as.bits for name in ("tq2", "tq3", "tq4", "tq3-sensitive")] == [2, 3, 4, 3]
    for name, recipe in recipes.items():
        assert recipe.summary
        # One folder holds it.
        assert layout_of(recipe)
        assert {"vision", "audio"} <= set(recipe.protect) or name == "bf16"
        # Where every weight is kept there is nothing to protect; elsewhere routers decide which experts run.
        assert "router" in recipe.protect or name in ("bf16", "mlx-4bit")


def test_routers_are_8_bit_at_least():
    (override,) = load_recipe("mlx-4bit").override
    assert (override.roles, override.stored_as.bits) == (("router",), 8)


def test_what_a_recipe_leaves_out(here):
    recipe = load_recipe(write(here, 'format = "tq"\nbits = 4\n'))
    assert recipe.stored_as == Tq(bits=4, group_size=128, seed=42, scale="search")
    assert recipe.keep_dtype == "source"
    assert recipe.protect == ("embed", "head", "router", "vision", "audio")


def test_an_override_inherits_the_default_unless_it_has_another_format(here):
    text = GOOD + 'group_size = 64\nseed = 7\n[[override]]\nroles = ["q"]\nbits = 4\n'
    text += '[[override]]\nroles = ["k"]\nformat = "keep"\n[[override]]\nroles = ["v"]\nformat = "tq"\n'
    first, second, third = load_recipe(write(here, text)).override
    assert first.stored_as == Tq(bits=4, group_size=64, seed=7)
    assert second.stored_as == Keep()
    assert third.stored_as == Tq(bits=3, group_size=64, seed=7)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("bits=4", ("bits", 4)),
        (" bits = 4 ", ("bits", 4)),
        ("format=keep", ("format", "keep")),
        ('format="keep"', ("format", "keep")),
        ('protect=["embed"]', ("protect", ["embed"])),
        ("layers={ first = 2 }", ("layers", {"first": 2})),
        ("summary=a=b", ("summary", "a=b")),
        ("bits=4\nseed=1", ("bits", "4\nseed=1")),
        ("bits=", ("bits", "")),
    ],
)
def test_changes_on_the_command_line(change, expected):
    assert parse_change(change) == expected


@pytest.mark.parametrize("change", ["bits", "=4", " = 4"])
def test_changes_that_are_none(change):
    with pytest.raises(InputError, match="is not of the form key=value"):
        parse_change(change)


def test_changes_apply_in_order():
    recipe = load_recipe("tq3", ["bits=4", "group_size=64", "bits=2"])
    assert recipe.stored_as == Tq(bits=2, group_size=64)


MESSAGES = [
    (GOOD + "groupsize = 64\n", "r.toml:4: `groupsize` is not a recipe key\n  fix: did you mean `group_size`?"),
    ('format = "tq"\nbits = 5\n', "r.toml:2: `bits` cannot be `5`\n  why: it must be 2, 3 or 4"),
    ('format = "tq"\nbits = true\n', "r.toml:2: `bits` cannot be `true`\n  why: it must be 2, 3 or 4"),
    ('format = "tq"\nbits = "3"\n', "r.toml:2: `bits` cannot be `3`\n  why: it must be 2, 3 or 4"),
    ('format = "tq"\n', "r.toml:1: `bits` is missing\n  why: the recipe's format needs it"),
    ('summary = "x"\n', 'r.toml:1: `format` is missing\n  fix: such as `format = "tq"`'),
    ("", 'r.toml:1: `format` is missing\n  fix: such as `format = "tq"`'),
    ('summary = "x"\nformat = "fp9"\n', "r.toml:2: `format` cannot be `fp9`\n  fix: did you mean `fp8`?"),
    ('format = "fp8"\nbits = 8\n', "r.toml:2: `bits` does not go with this format\n"
     "  fix: `tq convert --recipes` shows recipes that work"),
    ('format = "mlx"\nbits = 7\n', "r.toml:2: `bits` cannot be `7`\n  why: it must be 2, 3, 4, 5, 6 or 8"),
    ('bits = 3\nformat = "kep"\n', "r.toml:2: `format` cannot be `kep`\n"
     "  fix: did you mean `keep`?"),
    ('format = "keep"\nbits = 3\n', "r.toml:2: `bits` does not go with this format\n"
     "  fix: `tq convert --recipes` shows recipes that work"),
    (GOOD + "group_size = 96\n", "r.toml:4: `group_size` cannot be `96`\n  why: it must be 32, 64, 128 or 256"),
    (GOOD + "seed = -1\n", "r.toml:4: `seed` cannot be `-1`\n  why: it must be greater than or equal to 0"),
    (GOOD + "seed = 4294967296\n", "r.toml:4: `seed` cannot be `4294967296`\n  why: it must be less than 4294967296"),
    (GOOD + "seed = true\n", "r.toml:4: `seed` cannot be `true`\n  why: it must be a whole number"),
    (GOOD + "seed = 1.5\n", "r.toml:4: `seed` cannot be `1.5`\n  why: it must be a whole number"),
    (GOOD + 'scale = "serach"\n', "r.toml:4: `scale` cannot be `serach`\n  why: it must be `norm` or `search`\n"
     "  fix: did you mean `search`?"),
    (GOOD + 'protect = "embed"\n', "r.toml:4: `protect` cannot be `embed`\n  why: it must be a list, in brackets"),
    (GOOD + "override = 3\n", "r.toml:4: `override` cannot be `3`\n  why: it must be a list, in brackets"),
    (GOOD + "stored_as = 3\n", "`stored_as` is not a recipe key\n"
     "  fix: format, bits, group_size, seed, scale, rotation, candidates, codebook, strategy, "
     "division, table stand beside the other keys"),
    (GOOD + "[[override]]\nbits = 4\n", "r.toml:4: the override selects nothing\n"
     "  why: an override works only where it says `roles`, `tensors` or `layers`"),
    (GOOD + '[[override]]\nroles = ["q"]\nbits = 4\n\n[[override]]\nroles = ["k"]\nbits = 9\n',
     "r.toml:10: `bits` cannot be `9`\n  why: it must be 2, 3 or 4"),
    (GOOD + '[[override]]\nlayer = { first = 2 }\n', "r.toml:5: `layer` is not a recipe key\n"
     "  fix: did you mean `layers`?"),
    (GOOD + "[[override]]\nlayers = { frst = 2 }\n", "r.toml:5: `frst` is not a recipe key\n"
     "  fix: did you mean `first`?"),
    (GOOD + "[[override]]\nlayers = { first = -1 }\n", "r.toml:5: `first` cannot be `-1`\n"
     "  why: it must be greater than or equal to 0"),
    (GOOD + "[[override]]\n[override.layers]\nfirst = true\n", "r.toml:6: `first` cannot be `true`\n"
     "  why: it must be a whole number"),
    (GOOD + "[[override]]\nlayers = 2\n", "r.toml:5: `layers` cannot be `2`\n"
     "  why: it must be a table, such as `{ first = 2, last = 2 }`"),
    (GOOD + '[[override]]\nroles = ["q"]\nprotect = ["embed"]\n', "r.toml:6: `protect` cannot stand in `override`\n"
     "  fix: it belongs at the top, before any override"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MESSAGES)
def test_a_wrong_recipe(here, text, expected):
    assert message(text, here) == expected


def test_a_misspelt_role_has_a_nearest_one(here):
    text = message(GOOD + '[[override]]\nroles = ["dwon"]\n', here)
    assert text == "r.toml:5: `roles` cannot be `dwon`\n  fix: did you mean `down`?"
    text = message(GOOD + '[[override]]\nroles = ["zzz"]\n', here)
    assert text.startswith("r.toml:5: `roles` cannot be `zzz`\n  why: it must be `embed`, `head`, ")


def test_a_wrong_change_is_not_blamed_on_the_file(here):
    assert message(GOOD, here, "bits=5") == "--set: `bits` cannot be `5`\n  why: it must be 2, 3 or 4"
    assert message(GOOD, here, "bit=4") == "--set: `bit` is not a recipe key\n  fix: did you mean `bits`?"
    assert message(GOOD, here, "summary=\udcff").startswith("`--set` holds bytes that are not text")
    assert load_recipe("r.toml", ["summary=é"]).summary == "é"


def test_text_that_is_not_toml(here):
    text = message('summary = "x\nbits = 3\n', here)
    assert text.startswith("`r.toml` is not valid TOML\n  why: ")
    assert "line 1" in text
    assert message("a = " + "[" * 100_000, here).startswith("`r.toml` is not valid TOML\n  why: ")


def test_files_that_are_no_recipes(here):
    (here / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_recipe("binary.toml")
    (here / "large.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(InputError, match="is too large for a recipe"):
        load_recipe("large.toml")
    with pytest.raises(InputError) as caught:
        load_recipe("tq33")
    assert str(caught.value) == (
        "no recipe `tq33`\n  why: it is neither a built-in name nor a file\n  fix: did you mean `tq3`?"
    )
    with pytest.raises(InputError, match="lists the built-in ones"):
        load_recipe("/nothing/here.toml")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the prototypes beside the repository")
@pytest.mark.parametrize("name", ["bits", "dead", "fused", "missing", "r1", "r2", "role", "toml", "typo"])
def test_the_prototypes_bad_recipes_are_refused(name):
    with pytest.raises(InputError, match=r"\.toml"):
        load_recipe(str(SHARED / f"{name}.toml"))


texts = st.text(max_size=12)
roles = st.lists(st.sampled_from(Role.__args__), unique=True, max_size=4).map(tuple)
tqs = st.builds(
    Tq,
    bits=st.sampled_from([2, 3, 4]),
    group_size=st.sampled_from([32, 64, 128, 256]),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from(["norm", "search"]),
)
stored = tqs | st.just(Keep())
layers = st.builds(Layers, first=st.integers(0, 9), last=st.integers(0, 9))
overrides = st.builds(
    Override,
    stored_as=stored,
    why=texts,
    roles=roles,
    tensors=st.lists(texts, max_size=2).map(tuple),
    layers=layers,
)
recipes = st.builds(
    Recipe,
    summary=texts,
    stored_as=stored,
    protect=roles,
    keep_dtype=st.sampled_from(["source", "float16"]),
    override=st.lists(overrides, max_size=3).map(tuple),
)


@given(recipes)
def test_a_recipe_survives_its_file(tmp_path_factory, recipe):
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_bytes(recipe_toml(recipe.to_flat()))
    assert load_recipe(str(path)) == recipe
    assert recipe_toml(load_recipe(str(path)).to_flat()) == path.read_bytes()


@given(st.text())
def test_any_text_is_a_toml_string(text):
    assert tomllib.loads(recipe_toml({"summary": text}).decode()) == {"summary": text}
