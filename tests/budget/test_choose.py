"""`tq convert --budget`: sizes to the byte, ordinary recipes, the same ones whatever the threads, useful ones."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkpoints
from support.command import hashes, succeed, tq
from support.snapshots import check

from tqcli.budget.candidates import find_groups, widths, with_bits
from tqcli.budget.choose import Budget, choose
from tqcli.budget.planner import Planner
from tqcli.errors import InputError
from tqcli.formats.fp8 import Fp8
from tqcli.formats.mlx import Mlx
from tqcli.formats.tq import Tq
from tqcli.formats.uniform import Uniform
from tqcli.job import DEFAULT_SHARD_BYTES, Job, plan_job

EMBED_TOO = 'format = "{}"\nbits = 3\nprotect = ["router", "vision"]\n'


def planned(source, recipe="tq3", changes=()):
    return plan_job(Job(str(source), recipe, changes))


def chosen(plan, budget, workers=1):
    return choose(plan, budget, shard_bytes=DEFAULT_SHARD_BYTES, workers=workers)


def sizes(source, recipe="tq3"):
    """Of the fewest and the most bits for all."""
    return [planned(source, recipe, [f"bits={bits}"]).file_bytes for bits in (2, 4)]


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    return checkpoints.gemma(tmp_path_factory.mktemp("sources") / "deep", layers=5, shards=2)


def test_groups_are_what_engines_join(deep):
    plan = planned(deep)
    groups = find_groups(plan, Planner(plan, DEFAULT_SHARD_BYTES).arrangement)
    of_first = [group.roles for group in groups if group.layer == 0]
    assert sorted(of_first) == [
        ("down",), ("expert_down",), ("expert_gate", "expert_up"), ("gate", "up"), ("o",), ("q", "k", "v"),
    ]  # fmt: skip
    assert len(groups) == 5 * 6
    assert {one.bits for group in groups for one in group.candidates} == {2, 3, 4}


def test_experts_one_by_one_are_one_group(qwen_folder):
    plan = planned(qwen_folder)
    groups = find_groups(plan, Planner(plan, DEFAULT_SHARD_BYTES).arrangement)
    assert [len(group.decisions) for group in groups if "expert_down" in group.roles] == [3]
    assert [len(group.decisions) for group in groups if "expert_up" in group.roles] == [6]


def test_a_size_that_is_reached_to_the_byte(deep):
    """What fits exactly is taken; a byte less is another choice."""
    low, high = sizes(deep)
    middle = chosen(planned(deep), Budget(file_bytes=(low + high) // 2))
    exact = middle.plan.file_bytes
    again = chosen(planned(deep), Budget(file_bytes=exact))
    assert again.plan.file_bytes == exact
    assert again.cost == middle.cost
    less = chosen(planned(deep), Budget(file_bytes=exact - 1))
    assert less.plan.file_bytes < exact
    assert less.cost >= again.cost


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_more_bytes_never_predict_more_loss(deep, data):
    low, high = sizes(deep)
    limits = sorted(data.draw(st.lists(st.integers(low, high + 1000), min_size=2, max_size=3)))
    found = [chosen(planned(deep), Budget(file_bytes=limit)) for limit in limits]
    for limit, choice in zip(limits, found, strict=True):
        assert choice.plan.file_bytes <= limit
    costs = [choice.cost for choice in found]
    assert costs == sorted(costs, reverse=True)


def test_the_ends_of_the_range(deep):
    low, high = sizes(deep)
    assert {one.candidate.bits for one in chosen(planned(deep), Budget(file_bytes=low)).groups} == {2}
    assert {one.candidate.bits for one in chosen(planned(deep), Budget(file_bytes=high)).groups} == {4}
    assert {one.candidate.bits for one in chosen(planned(deep), Budget(file_bytes=10**12)).groups} == {4}
    with pytest.raises(InputError) as caught:
        chosen(planned(deep), Budget(file_bytes=low - 1))
    assert f"{low - 1:,} bytes" in caught.value.what
    assert f"from {low:,} bytes to {high:,} bytes" in caught.value.why


def test_bits_per_weight_count_all_weights(deep):
    plan = planned(deep)
    choice = chosen(plan, Budget(bits_per_weight=4.6))
    found = 8 * choice.plan.weight_bytes / plan.parameters
    assert 4.55 < found <= 4.6
    with pytest.raises(InputError, match=r"1\.000 bits per weight"):
        chosen(plan, Budget(bits_per_weight=1.0))


def test_better_than_the_same_bits_for_all(deep):
    """At the size of 3 bits: some weights have more and some fewer, and less loss is predicted."""
    choice = chosen(planned(deep), Budget(file_bytes=planned(deep).file_bytes))
    assert choice.uniform.bits == 3
    assert choice.cost < choice.uniform.cost
    assert {2, 4} <= {one.candidate.bits for one in choice.groups}


def test_threads_change_nothing(deep):
    low, high = sizes(deep)
    one, three = (chosen(planned(deep), Budget(file_bytes=(low + high) // 2), workers=n) for n in (1, 3))
    assert one.plan.recipe == three.plan.recipe
    assert one.cost == three.cost


@pytest.mark.parametrize("recipe", ["tq3", "tq3t"])
def test_instruction_sets_change_nothing(deep, recipe, monkeypatch):
    plan = planned(deep, recipe)
    fastest = chosen(plan, Budget(file_bytes=plan.file_bytes))
    monkeypatch.setenv("TQ_KERNELS", "portable")
    portable = chosen(plan, Budget(file_bytes=plan.file_bytes))
    assert portable.plan.recipe == fastest.plan.recipe
    assert portable.cost == fastest.cost


def test_kernels_that_are_not_there(deep, monkeypatch):
    monkeypatch.setenv("TQ_KERNELS", "abacus")
    done = tq("convert", deep, "-n", "--bits-per-weight", "4.6")
    assert done.code == 3
    assert "kernels cannot be used" in done.stderr


def test_the_recipe_says_it_all(deep, here):
    """The recorded recipe alone gives the same folder; the conversion is one that resumes and verifies."""
    low, high = sizes(deep)
    succeed("convert", deep, "out", "--budget", (low + high) // 2)
    written = sum(path.stat().st_size for path in Path("out").glob("*.safetensors"))
    assert high // 2 < written <= (low + high) // 2
    succeed("convert", deep, "again", "--recipe", "out/tq_recipe.toml")
    assert hashes(here / "again") == hashes(here / "out")
    succeed("convert", deep, "out", "--budget", (low + high) // 2)


def test_overrides_of_the_recipe_are_chosen_anew(deep, here):
    Path("r.toml").write_text(
        'format = "tq"\nbits = 3\n[[override]]\nroles = ["o"]\nbits = 4\n'
        '[[override]]\nroles = ["down"]\nformat = "keep"\n'
    )
    plan = planned(deep, "r.toml")
    low = chosen(plan, Budget(file_bytes=planned(deep, "r.toml", ["bits=2"]).file_bytes - 5 * 1024))
    assert 2 in {one.candidate.bits for one in low.groups if one.group.roles == ("o",)}
    assert not any("down" in one.group.roles for one in low.groups)
    assert all(
        low.plan.by_name[one.weight.name].format is None for one in plan.decisions if one.role.roles == ("down",)
    )


def test_embeddings_have_their_own_widths(deep, here):
    Path("r.toml").write_text(
        EMBED_TOO.format("trellis") + '[[override]]\nroles = ["embed"]\nformat = "uniform"\nbits = 8\n'
    )
    plan = planned(deep, "r.toml")
    planner = Planner(plan, DEFAULT_SHARD_BYTES)
    (embed,) = (group for group in find_groups(plan, planner.arrangement) if group.roles == ("embed",))
    assert [one.bits for one in embed.candidates] == [4, 8]
    assert embed.layer is None
    choice = chosen(plan, Budget(file_bytes=plan.file_bytes))
    assert choice.plan.file_bytes <= plan.file_bytes
    assert choice.uniform.bits == 3


@pytest.mark.parametrize("recipe", ["mlx-4bit", "hlwq-q5", "tq3t"])
def test_every_format_with_widths(recipe, here):
    source = checkpoints.gemma(here / "model")
    plan = planned(source, recipe)
    choice = chosen(plan, Budget(file_bytes=plan.file_bytes))
    assert choice.plan.file_bytes <= plan.file_bytes
    assert choice.plan.layout == plan.layout
    assert choice.cost <= choice.uniform.cost


def test_a_format_without_widths_is_refused(deep):
    with pytest.raises(InputError, match="other widths"):
        chosen(planned(deep, "fp8-dynamic"), Budget(bits_per_weight=9.0))


def test_a_weight_that_is_not_finite_is_named(here):
    source = checkpoints.gemma(here / "bad")
    name = "model.language_model.layers.1.self_attn.o_proj.weight"
    dtype, shape, _ = checkpoints.tensor((128, 128))
    checkpoints.rewrite(source, {name: (dtype, shape, b"\xff" * (2 * 128 * 128))})
    with pytest.raises(InputError, match=name):
        chosen(planned(source), Budget(bits_per_weight=5.0))


def test_widths_of_formats():
    assert widths(Tq(bits=3)) == (2, 3, 4)
    assert widths(Mlx(bits=4)) == (2, 3, 4, 5, 6, 8)
    assert widths(Fp8()) == ()
    assert with_bits(Tq(bits=3, seed=7, group_size=64), 2) == Tq(bits=2, seed=7, group_size=64)
    assert with_bits(Uniform(bits=8), 4) == Uniform(bits=4)


def test_dry_run_shows_roles_and_layers(here):
    checkpoints.gemma(here / "model", layers=5)
    options = ("convert", "model", "-n", "-r", "tq3", "--bits-per-weight", "4.6")
    shown = check("dry-run-budget", *options, "--workers", 2).stdout
    assert max(len(line) for line in shown.splitlines()) <= 80
    data = json.loads(succeed(*options, "--format", "json").stdout)
    layers = [layer for one in data["chosen"] if one["roles"] == ["q", "k", "v"] for layer in one["layers"]]
    assert sorted(layers) == [0, 2, 4]
    assert data["cost"] < data["uniform"]["cost"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budget", "1GB", "--bits-per-weight", "3"], "cannot go with"),
        (["--calibrate", "text.txt"], "chooses nothing by itself"),
        (["--budget", "big"], "is not a size"),
        (["--budget", "100kB"], "does not fit"),
    ],
)
def test_flags_that_make_no_sense(deep, flags, said):
    done = tq("convert", deep, "-n", *flags)
    assert done.code == 2
    assert said in done.stderr


@pytest.mark.parametrize(("size", "fits"), [("0.9MB", True), ("1MiB", True), ("900000", True), ("300kB", False)])
def test_sizes_are_read(deep, size, fits):
    assert (tq("convert", deep, "-n", "--budget", size).code == 0) is fits
