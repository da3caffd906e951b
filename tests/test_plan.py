"""Which tensor becomes what, and the mistakes in a recipe that only a model shows."""

import json
import re
from math import prod
from pathlib import Path

import pytest
from support import checkpoints
from support.command import succeed

from tqcli.errors import InputError
from tqcli.formats.tq import Tq
from tqcli.job import Job, plan_job
from tqcli.plan_summary import layer_ranges, plan_rows
from tqcli.selection import matches

LAYER = "model.language_model.layers."


@pytest.fixture
def plan(gemma_folder, here):
    def make(overrides="", top="", source=gemma_folder):
        (here / "r.toml").write_text(f'format = "tq"\nbits = 3\n{top}\n{overrides}')
        made = plan_job(Job(str(source), "r.toml"))
        return {decision.weight.name: decision for decision in made.decisions}

    return make


def fails(plan, overrides="", top="", **more) -> str:
    with pytest.raises(InputError) as caught:
        plan(overrides, top, **more)
    return str(caught.value)


def labels(decisions, part):
    return {name.removeprefix(LAYER): one.label for name, one in decisions.items() if part in name}


def test_the_default(plan):
    decisions = plan()
    packed = {name.removeprefix(LAYER).partition(".")[2] for name, one in decisions.items() if one.format}
    assert packed == {
        *(f"self_attn.{one}_proj.weight" for one in "qkvo"),
        *(f"mlp.{one}_proj.weight" for one in ("gate", "up", "down")),
        "experts.gate_up_proj",
        "experts.down_proj",
    }
    reasons = {name: one.why for name, one in decisions.items() if not one.format}
    assert reasons["model.language_model.embed_tokens.weight"] == "protected"
    assert reasons[LAYER + "0.router.proj.weight"] == "protected"
    assert reasons[LAYER + "0.router.scale"] == "protected"
    assert reasons["model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight"] == "protected"
    assert reasons[LAYER + "0.layer_scalar"] == "not a weight matrix"
    assert reasons[LAYER + "0.input_layernorm.weight"] == "not a weight matrix"


def test_the_first_override_that_fits_wins(plan):
    decisions = plan(
        '[[override]]\nlayers = { first = 1 }\nbits = 4\nwhy = "first"\n'
        '[[override]]\nroles = ["down", "expert_down"]\nbits = 2\nwhy = "second"\n'
    )
    assert labels(decisions, "down_proj") == {
        "0.mlp.down_proj.weight": "tq4 g128",
        "0.experts.down_proj": "tq4 g128",
        "1.mlp.down_proj.weight": "tq2 g128",
        "1.experts.down_proj": "tq2 g128",
    }
    assert decisions[LAYER + "0.experts.down_proj"].why == "first"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("first = 1", {0}), ("last = 1", {3}), ("first = 1, last = 2", {0, 2, 3}), ("first = 9", {0, 1, 2, 3})],
)
def test_first_and_last_layers(plan, here, layers, expected):
    source = checkpoints.gemma(here / "deep", layers=4)
    decisions = plan(f"[[override]]\nlayers = {{ {layers} }}\nbits = 4\n", source=source)
    wide = {one.role.layer for one in decisions.values() if one.format and one.format.bits == 4}
    assert wide == expected
    assert {one.role.layer for one in decisions.values() if one.format} == {0, 1, 2, 3}


def test_protection_yields_to_a_role_or_a_name_and_not_to_layers(plan):
    router = LAYER + "0.router.proj.weight"
    assert plan("[[override]]\nlayers = { first = 2 }\nbits = 4\n")[router].why == "protected"
    assert plan('[[override]]\nroles = ["router"]\nbits = 4\n')[router].label == "tq4 g128"
    assert plan('[[override]]\ntensors = ["*.router.proj"]\nbits = 2\n')[router].label == "tq2 g128"
    assert plan(top="protect = []")[router].label == "tq3 g128"


def test_protecting_a_role_keeps_it(plan):
    decisions = plan(top='protect = ["expert_gate", "o"]')
    assert set(labels(decisions, "o_proj.weight").values()) >= {"bf16"}
    assert labels(decisions, "experts.gate_up_proj") == {
        "0.experts.gate_up_proj": "bf16",
        "1.experts.gate_up_proj": "bf16",
    }
    assert decisions["model.language_model.embed_tokens.weight"].format


def test_an_override_may_keep(plan):
    decisions = plan('[[override]]\nroles = ["down"]\nformat = "keep"\nwhy = "write-back"\n')
    assert labels(decisions, "mlp.down") == {"0.mlp.down_proj.weight": "bf16", "1.mlp.down_proj.weight": "bf16"}
    assert decisions[LAYER + "0.mlp.down_proj.weight"].why == "write-back"


def test_a_default_of_keep_with_one_override(here, gemma_folder):
    (here / "r.toml").write_text('format = "keep"\n[[override]]\nroles = ["expert_down"]\nformat = "tq"\nbits = 2\n')
    made = plan_job(Job(str(gemma_folder), "r.toml"))
    assert {one.weight.name for one in made.packed} == {LAYER + f"{layer}.experts.down_proj" for layer in (0, 1)}


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("a.b.weight", "a.b", True),
        ("a.b.weight", "a.b.weight", True),
        ("a.b.weight", "*.b", True),
        ("a.b.weight", "b", False),
        ("a.b.weight", "re:a\\.[bc]", True),
        ("a.b.weight", "re:a", False),
        ("a.b.bias", "a.b", False),
        ("A.b", "a.b", False),
    ],
)
def test_patterns(name, pattern, expected):
    assert matches(name, pattern) is expected


def test_patterns_select(plan):
    decisions = plan('[[override]]\ntensors = ["re:.*layers\\\\.1\\\\.mlp\\\\..*", "*.0.mlp.down_proj"]\nbits = 4\n')
    assert {name for name, label in labels(decisions, "mlp").items() if label == "tq4 g128"} == {
        "0.mlp.down_proj.weight",
        "1.mlp.gate_proj.weight",
        "1.mlp.up_proj.weight",
        "1.mlp.down_proj.weight",
    }


def test_an_unknown_role_is_packed_only_by_its_name(plan, here):
    source = checkpoints.gemma(here / "model")
    checkpoints.rewrite(
        source, {"model.extra.weight": checkpoints.tensor((64, 128)), "model.conv": checkpoints.tensor((64, 3, 128))}
    )
    assert plan(source=source)["model.extra.weight"].why == "no known role"
    named = plan('[[override]]\ntensors = ["model.*"]\nbits = 4\n', source=source)
    assert named["model.extra.weight"].label == "tq4 g128"
    assert named["model.conv"].why == "not a weight matrix"
    text = fails(plan, '[[override]]\nroles = ["other"]\nbits = 4\n', source=source)
    assert text.startswith("an override changes nothing in this model: `other`\n  why: ")


def test_what_packing_would_not_shrink_is_kept(plan, here):
    source = checkpoints.gemma(here / "model")
    thin = LAYER + "0.mlp.down_proj.weight"
    checkpoints.rewrite(source, {thin: checkpoints.tensor((128, 24))})
    assert plan(source=source)[thin].why == "packing would not shrink it"


def test_integers_and_empty_tensors_are_kept(plan, here):
    source = checkpoints.gemma(here / "model")
    down, up = LAYER + "0.mlp.down_proj.weight", LAYER + "0.self_attn.o_proj.weight"
    checkpoints.rewrite(source, {down: ("I64", (2, 128), b"\0" * 2048), up: ("BF16", (0, 128), b"")})
    decisions = plan(source=source)
    assert (decisions[down].label, decisions[down].why) == ("i64", "i64 is not encoded")
    assert (decisions[up].label, decisions[up].why) == ("bf16", "empty")


class TestMistakes:
    def test_a_pattern_that_matches_nothing(self, plan):
        assert fails(plan, '[[override]]\ntensors = ["*.mlp.down_projj"]\nbits = 4\n') == (
            "pattern `*.mlp.down_projj` matches no tensor of this model\n"
            "  fix: `tq inspect MODEL --names` lists the names"
        )

    def test_one_dead_pattern_of_two(self, plan):
        text = fails(plan, '[[override]]\ntensors = ["*.o_proj", "*.dead"]\nbits = 4\n')
        assert text.startswith("pattern `*.dead` matches no tensor")

    def test_a_pattern_that_is_no_regular_expression(self, plan):
        text = fails(plan, '[[override]]\ntensors = ["re:("]\nbits = 4\n')
        assert text.startswith("`re:(` is not a regular expression\n  why: ")

    @pytest.mark.parametrize(
        ("override", "what"),
        [
            ('roles = ["audio"]', "`audio`"),
            ('roles = ["q"]\ntensors = ["*.o_proj"]', "`q`, `*.o_proj`"),
            ("layers = { first = 0 }", "first 0 and last 0 layers"),
            ('roles = ["embed"]\nlayers = { first = 1 }', "`embed`, first 1 and last 0 layers"),
        ],
    )
    def test_an_override_that_fits_nothing(self, plan, override, what):
        text = fails(plan, f'[[override]]\nwhy = "reason"\n{override}\nbits = 4\n')
        assert text == f"an override matches no tensor of this model: {what}\n  why: reason"

    @pytest.mark.parametrize(
        ("overrides", "what"),
        [
            ('[[override]]\nroles = ["norm"]\nbits = 4\n', "`norm`"),
            ('[[override]]\nlayers = { first = 2 }\nbits = 4\n[[override]]\nroles = ["q"]\nbits = 2\n', "`q`"),
            ('[[override]]\ntensors = ["*.layer_scalar"]\nbits = 4\n', "`*.layer_scalar`"),
        ],
    )
    def test_an_override_that_changes_nothing(self, plan, overrides, what):
        text = fails(plan, overrides)
        assert text.startswith(f"an override changes nothing in this model: {what}\n  why: earlier overrides take")

    def test_an_override_of_tensors_too_small_to_pack_is_no_mistake(self, plan, here):
        source = checkpoints.gemma(here / "model", layers=1)
        checkpoints.rewrite(source, {LAYER + "0.mlp.down_proj.weight": checkpoints.tensor((128, 24))})
        decisions = plan('[[override]]\nroles = ["down"]\nbits = 4\n', source=source)
        assert decisions[LAYER + "0.mlp.down_proj.weight"].why == "packing would not shrink it"

    def test_formats_mixed_in_attention(self, plan):
        assert fails(plan, '[[override]]\nroles = ["q"]\nbits = 4\n') == (
            f"`{LAYER}0.self_attn` would mix formats inside one fused matrix\n"
            f"  why: `{LAYER}0.self_attn.q_proj.weight` tq4 g128, `{LAYER}0.self_attn.k_proj.weight` tq3 g128\n"
            "  fix: give every q, k, v of a layer the same format in the recipe"
        )

    @pytest.mark.parametrize("change", ["seed = 7", "group_size = 64", 'format = "keep"'])
    def test_everything_that_keeps_tensors_from_fusing_counts(self, plan, change):
        assert "would mix formats inside one fused matrix" in fails(plan, f'[[override]]\nroles = ["v"]\n{change}\n')

    def test_another_scale_is_no_other_format(self, plan):
        assert plan('[[override]]\nroles = ["v"]\nscale = "norm"\n')

    def test_formats_mixed_in_the_gate(self, plan):
        text = fails(plan, '[[override]]\nroles = ["up"]\nbits = 2\n')
        assert text.startswith(f"`{LAYER}0.mlp` would mix formats")

    def test_experts_of_a_layer_mixed(self, plan, qwen_folder):
        text = fails(plan, '[[override]]\ntensors = ["*.experts.1.*"]\nbits = 4\n', source=qwen_folder)
        assert text.startswith("`model.layers.0.mlp.experts` would mix formats inside one fused matrix\n")

    def test_down_projections_of_experts_mixed(self, plan, qwen_folder):
        """All experts of a layer run as one stack of down projections, too."""
        text = fails(plan, '[[override]]\ntensors = ["*.experts.1.down_proj"]\nbits = 4\n', source=qwen_folder)
        assert text.startswith("`model.layers.0.mlp.experts` would mix formats inside one fused matrix\n")

    def test_kept_floats_of_two_kinds_may_lie_together(self, plan, here):
        source = checkpoints.gemma(here / "model")
        checkpoints.rewrite(source, {LAYER + "0.self_attn.k_proj.weight": checkpoints.tensor((64, 128), "F32")})
        assert plan('[[override]]\nroles = ["q", "k", "v"]\nformat = "keep"\n', source=source)

    def test_a_name_that_a_packed_tensor_takes(self, here, monkeypatch):
        source = checkpoints.gemma(here / "model")
        scale = LAYER + "0.self_attn.q_proj.weight_scale"
        checkpoints.rewrite(source, {scale: checkpoints.tensor((4,))})
        for name in ("refuse_compressed", "refuse_unreadable"):
            monkeypatch.setattr(f"tqcli.job.{name}", lambda *_: None)
        with pytest.raises(InputError, match=f"^two tensors would be called `{scale}`"):
            plan_job(Job(str(source), "fp8-dynamic"))


def test_an_optional_override_may_find_nothing(plan):
    override = '[[override]]\nlayers = { first = 9 }\nbits = 4\n[[override]]\nroles = ["q"]\nbits = 2\n'
    assert "changes nothing" in fails(plan, override)
    assert set(labels(plan(override + "optional = true\n"), "q_proj.weight").values()) == {"tq4 g128"}
    assert "matches no tensor" in fails(plan, '[[override]]\nroles = ["audio"]\nbits = 4\n')
    plan('[[override]]\nroles = ["audio"]\nbits = 4\noptional = true\n')


def test_formats_of_two_layouts_cannot_be_mixed(plan):
    message = fails(plan, '[[override]]\nroles = ["down"]\nformat = "fp8"\n')
    assert message.startswith("`tq` and `fp8` cannot lie in one folder")


def test_a_format_may_refuse_a_shape_and_says_why(here, gemma_folder):
    (here / "r.toml").write_text('format = "int4"\ngroup_size = 128\n')
    made = plan_job(Job(str(gemma_folder), "r.toml"))
    refused = {one.weight.name: one.why for one in made.decisions if one.refused}
    assert refused
    assert all(re.match(r"[0-9]+ columns are no multiple of 128", why) for why in refused.values())


def test_what_engines_run_by_one_scheme_is_refused_together(here, gemma_folder):
    (here / "r.toml").write_text('format = "int4"\ngroup_size = 64\n')
    made = plan_job(Job(str(gemma_folder), "r.toml"))
    experts = {one.role.roles[0]: one for one in made.decisions if one.role.expert == 0 and one.role.layer == 0}
    assert experts["expert_down"].weight.columns % 64
    assert not experts["expert_gate"].weight.columns % 64
    assert all(one.format is None and one.refused for one in experts.values())
    assert experts["expert_gate"].why == f"{experts['expert_down'].why}, and all are stored alike"
    assert any(one.format for one in made.decisions if one.role.roles == ("q",))


def test_the_rows_of_the_table_add_up(gemma_folder):
    plan = plan_job(Job(str(gemma_folder), "tq3-sensitive"))
    rows = plan_rows(plan)
    assert sum(row.tensors for row in rows) == len(plan.decisions) == 32
    assert sum(row.nbytes for row in rows) == plan.weight_bytes
    assert sum(row.source_bytes for row in rows) == plan.source_bytes
    assert sum(row.parameters for row in rows) == plan.parameters
    assert [row.nbytes for row in rows] == sorted((row.nbytes for row in rows), reverse=True)


def test_sizes_follow_the_format(gemma_folder):
    for decision in plan_job(Job(str(gemma_folder), "tq4")).packed:
        rows = decision.weight.parameters // decision.weight.shape[-1]
        groups = -(-decision.weight.shape[-1] // 128)
        assert decision.nbytes == rows * groups * (64 + 4)
        assert decision.format == Tq(bits=4)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], "-"),
        ([3], "3"),
        ([0, 1, 2], "0-2"),
        ([5, 0, 1, 2], "0-2 5"),
        ([0, 2, 4], "0 2 4"),
        ([0, 1, 3, 4], "0-1 3-4"),
    ],
)
def test_layer_ranges(layers, expected):
    assert layer_ranges(layers) == expected


def test_json_of_a_dry_run(gemma_folder):
    data = json.loads(succeed("convert", gemma_folder, "-n", "--format", "json").stdout)
    assert data["parameters"] == sum(row["parameters"] for row in data["rows"])
    assert data["weight_bytes"] == sum(row["bytes"] for row in data["rows"])
    assert data["model_type"] == "gemma4"
    assert data["bits_per_weight"] == round(data["weight_bytes"] * 8 / data["parameters"], 4)


TENSORS = Path(__file__).parents[2] / "shared" / "gemma4" / "tensors.json"


@pytest.mark.skipif(not TENSORS.is_file(), reason="needs the real model's tensor list beside the repository")
def test_the_real_model_to_the_byte(here):
    """All headers of the 26B model over a file of holes: every tensor has a role, sizes are counted anew here."""
    tensors = json.loads(TENSORS.read_text())["tensors"]
    header, position = {}, 0
    for name, entry in tensors.items():
        nbytes = 2 * prod(entry["shape"])
        header[name] = {**entry, "data_offsets": [position, position + nbytes]}
        position += nbytes
    config = checkpoints.GEMMA_CONFIG | {"text_config": {"num_hidden_layers": 30}}
    folder = checkpoints.write_checkpoint(here / "model", config, {})
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    plan = plan_job(Job("model", "tq3"))
    assert plan.parameters == 25_805_936_206
    assert not [one.weight.name for one in plan.decisions if one.role.roles == ("other",)]
    packed = {one.weight.name for one in plan.packed}
    expected = {name for name in tensors if ".layers." in name and "language_model" in name and "router" not in name
                and len(tensors[name]["shape"]) > 1}  # fmt: skip
    assert packed == expected
    total = 0
    for name, entry in tensors.items():
        *rows, columns = entry["shape"]
        total += prod(rows) * -(-columns // 128) * 52 if name in packed else 2 * prod(entry["shape"])
    assert plan.weight_bytes == total
    assert max(shard.weight_bytes for shard in plan.shards) <= 5_000_000_000
    assert plan.file_bytes - total == sum(len(shard.header) for shard in plan.shards)
