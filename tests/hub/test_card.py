"""The card says what is so: of these bytes, in valid YAML, and with nothing of a stranger's as markup or escapes."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command import succeed, tq
from support.fake_hub_pushes import CARD, converted, copy_of, name_original

from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.hub.card import Facts, model_card
from tqcli.hub.card_run import how_to_run
from tqcli.hub.card_source import SourceCard
from tqcli.hub.results import RESULTS_NAME, Measured, fingerprint
from tqcli.inspection import summarize
from tqcli.readers.find import known, read


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("card"))


@pytest.fixture
def out(made, tmp_path):
    return copy_of(made, tmp_path / "out")


def card(out, *options):
    return json.loads(succeed("push", out, "me/name", "--dry-run", "--format", "json", *options).stdout)["card"]


def head(text):
    return yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))


def row(out, **changes):
    weights = fingerprint(open_checkpoint(LocalFolder(out)))
    return {
        "weights": weights, "metric": "perplexity", "value": 7.25, "unit": "", "command": "tq bench out", "date":
        "2026-11-25", "machine": "2 cores", "versions": {"tqcli": "0.1.0", "torch": "2.13.0"},
    } | changes  # fmt: skip


def write_rows(out, *rows):
    (out / RESULTS_NAME).write_text("".join(json.dumps(one) + "\n" for one in rows))


def test_its_head(out):
    assert head(card(out)) == {
        "base_model": "org/model",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "license": "apache-2.0",
        "language": ["en"],
        "tags": ["tqcli", "trellis", "uniform"],
    }


def test_its_numbers_are_those_of_the_headers(out):
    text = card(out)
    summary = summarize(open_checkpoint(LocalFolder(out)))
    for one in summary.by_role():
        assert f"| `{one.role}` | `{one.kind}` | {one.tensors} | {one.parameters:,} |" in text
    assert f"{summary.bits_per_weight:.2f} bits per weight" in text


def test_the_same_folder_gives_the_same_card(out):
    assert card(out) == card(out)


def test_how_it_was_made(out):
    text = card(out)
    assert 'summary = "3-bit trellis; embeddings and head 8-bit"' in text
    assert json.loads((out / "tq_config.json").read_text())["source"]["fingerprint"] in text
    assert "| its revision | `not recorded` |" in text


def test_the_revision_of_the_source(out):
    path = out / "tq_config.json"
    record = json.loads(path.read_text())
    record["source"]["revision"] = "a" * 40
    path.write_text(json.dumps(record))
    assert f"| its revision | `{'a' * 40}` |" in card(out)


@pytest.mark.parametrize(
    ("recipe", "says", "library"),
    [
        ("tq3t", "vllm serve me/name", "transformers"),
        ("fp8-dynamic", "loader of its own for this format", "transformers"),
        ("mlx-4bit", "mlx_lm.generate --model me/name", "mlx"),
        ("hlwq-q5", "vLLM does not read this format", "transformers"),
    ],
)
def test_how_to_run_each_layout(made, tmp_path, recipe, says, library):
    out = tmp_path / "other"
    succeed("convert", made.parent / "model", out, "--recipe", recipe, "--format", "quiet")
    name_original(out, "org/model")
    text = card(out)
    assert says in text
    assert "import tqcli" in text
    assert "tq serve me/name" in text
    assert head(text)["library_name"] == library


def test_every_layout_that_is_read_has_its_text():
    for layout in known():
        assert "tqcli" in how_to_run(layout, "me/name", "")


def test_a_folder_that_tq_did_not_write(made, tmp_path):
    out = tmp_path / "other"
    succeed("convert", made.parent / "model", out, "--recipe", "mlx-4bit", "--format", "quiet")
    for name in ("tq_config.json", "tq_recipe.toml"):
        (out / name).unlink()
    text = card(out, "--base", "org/model")
    assert "Its recipe is not recorded." in text
    assert "| converted by | `a program that left no name` |" in text
    assert "`files:" in text


def test_not_measured(out):
    assert "\nQuality and speed of these weights: not measured.\n" in card(out)


def test_what_was_measured_on_these_bytes(out):
    write_rows(out, row(out), row(out, metric="tokens a second", value=1234567.0, unit="1/s"))
    text = card(out)
    assert "| `perplexity` | 7.25 | `tq bench out` | `2 cores` | `torch 2.13.0, tqcli 0.1.0` | `2026-11-25` |" in text
    assert "| 1.23457e+06 `1/s` |" in text
    assert "not measured" not in text


def test_what_was_measured_on_others_is_never_shown(out):
    write_rows(out, row(out, weights=f"tensors:{'0' * 64}", value=3.125), row(out))
    text = card(out)
    assert "3.125" not in text
    assert f"1 row of `{RESULTS_NAME}` belong" in text
    write_rows(out, row(out, weights=f"tensors:{'0' * 64}", value=3.125))
    assert "not measured" in card(out)


def test_one_changed_byte_ends_what_was_measured(made, out, tmp_path):
    write_rows(out, row(out))
    other = tmp_path / "other"
    succeed("convert", made.parent / "model", other, "--set", "seed=43", "--format", "quiet")
    name_original(other, "org/model")
    (other / RESULTS_NAME).write_bytes((out / RESULTS_NAME).read_bytes())
    assert "7.25" in card(out)
    assert "7.25" not in card(other)


def test_only_rows_of_these_bytes_are_pushed(out):
    write_rows(out, row(out, weights=f"tensors:{'0' * 64}"))
    found = json.loads(succeed("push", out, "me/name", "--dry-run", "--format", "json").stdout)
    assert RESULTS_NAME not in [file["name"] for file in found["files"]]
    kept = json.dumps(row(out)) + "\n"
    write_rows(out, row(out, weights=f"tensors:{'0' * 64}"), row(out))
    found = json.loads(succeed("push", out, "me/name", "--dry-run", "--format", "json").stdout)
    assert [file["size"] for file in found["files"] if file["name"] == RESULTS_NAME] == [len(kept)]


HOSTILE = "a`b|c\n# d\x1b[31m<script>\u202e"


def test_nothing_of_strangers_is_markup(out):
    write_rows(out, row(out, metric=HOSTILE, unit=HOSTILE, command=HOSTILE, machine=HOSTILE, versions={"a": HOSTILE}))
    path = out / "tq_config.json"
    record = json.loads(path.read_text())
    record["source"]["model"] = HOSTILE
    record["recipe"]["summary"] = "````\n# d"
    path.write_text(json.dumps(record))
    text = card(out)
    assert not [line for line in text.splitlines() if line.startswith("# d")]
    assert not set("\x1b\u202e") & set(text)
    for line in text.splitlines():
        if "<script>" in line and line.startswith("|"):
            inside = line.replace("--:", "").split("`")
            assert not any("<script>" in part for part in inside[::2])
            cells = line.count("|")
            assert cells in (3, 7)
    assert "\n`````toml\n" in text


@pytest.mark.parametrize("recipe", [{"a": "\ud800"}, {"override": 3}, {"override": ["x"]}, {"a": "x" * 70_000}])
def test_a_damaged_recipe(out, recipe):
    path = out / "tq_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": recipe}))
    result = tq("push", out, "me/name", "--dry-run")
    assert (result.code, "the recipe in `tq_config.json`" in result.stderr) == (2, True)


def test_the_screen_gets_no_escapes(out):
    (out / "README.md").write_text(
        '---\nlicense: apache-2.0\nlicense_name: "a\\e[31mb"\nextra_gated_x: "\\e[2J"\n---\n'
    )
    result = succeed("push", out, "me/name", "--dry-run")
    assert "\x1b" not in result.stdout + result.stderr


def test_terms_of_access_are_carried_over(out):
    (out / "README.md").write_text(
        "---\nlicense: gemma\nlicense_link: LICENSE\nextra_gated_heading: 'Agree: first'\n"
        "extra_gated_fields:\n  Name: text\n  I agree: checkbox\ntags: [theirs]\npipeline_tag: text-generation\n---\n"
    )
    text = card(out)
    assert head(text) | {"tags": 0} == {
        "base_model": "org/model",
        "base_model_relation": "quantized",
        "extra_gated_fields": {"Name": "text", "I agree": "checkbox"},
        "extra_gated_heading": "Agree: first",
        "library_name": "transformers",
        "license": "gemma",
        "license_link": "https://huggingface.co/org/model/blob/main/LICENSE",
        "pipeline_tag": "text-generation",
        "tags": 0,
    }
    assert "asks readers to agree" in succeed("push", out, "me/name", "--dry-run").stderr


def test_an_original_on_no_hub(made, tmp_path):
    out = copy_of(made, tmp_path / "local")
    name_original(out, "model")
    result = tq("push", out, "me/name", "--dry-run")
    assert result.code == 2
    assert "--base none" in result.stderr
    found = head(card(out, "--base", "none"))
    assert not {"base_model", "base_model_relation"} & found.keys()
    assert head(card(out, "--base", "other/one"))["base_model"] == "other/one"


def test_the_base_model_itself(out):
    result = tq("push", out, "Org/Model", "--dry-run")
    assert (result.code, "base model itself" in result.stderr) == (2, True)


def test_a_licence_that_no_card_says(out):
    (out / "README.md").write_text("# nothing\n")
    result = tq("push", out, "me/name", "--dry-run", "--base", "none")
    assert (result.code, "the licence of these weights is not known" in result.stderr) == (2, True)
    assert head(card(out, "--base", "none", "--license", "mit"))["license"] == "mit"


def test_a_licence_against_the_sources(out):
    assert (out / "README.md").read_text() == CARD
    result = tq("push", out, "me/name", "--dry-run", "--license", "mit")
    assert (result.code, "says that the licence is `apache-2.0`" in result.stderr) == (2, True)
    card(out, "--license", "apache-2.0")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["extra_gated_prompt", "extra_gated_heading"]),
        st.text(st.characters(exclude_categories=()), max_size=60),
    )
)
def test_whatever_the_terms_are_the_head_says_them(made, gating):
    checkpoint = open_checkpoint(LocalFolder(made))
    source = SourceCard(licence="other", name="n", gating=gating)
    facts = Facts("me/name", "", "org/model", source, read(checkpoint), summarize(checkpoint), "x", Measured())
    text = model_card(facts).decode()
    assert {key: value for key, value in head(text).items() if key.startswith("extra_gated_")} == gating
    assert text.count("\n---\n") == 1
