"""Every screen as a person sees it, at 80 columns; nothing in a plan or a summary is wider."""

import shutil
from pathlib import Path

import pytest
from support import checkpoints
from support.snapshots import check

MIXED = """summary = "4 bits at the ends"
format  = "tq"
bits    = 3

[[override]]
why     = "boundary layers"
layers  = { first = 1, last = 1 }
bits    = 4

[[override]]
why     = "write-back"
roles   = ["down", "expert_down", "o"]
bits    = 4
"""
Q_PROJ = "model.language_model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def model(here) -> Path:
    checkpoints.gemma(here / "model")
    return here / "model"


@pytest.fixture
def out(model, here) -> Path:
    from support.command import succeed

    succeed("convert", "model", "out")
    return here / "out"


def narrow(text: str) -> None:
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert not wide, wide


def test_help():
    for name, arguments in (("help", ()), ("help-convert", ("convert",)), ("help-inspect", ("inspect",)),
                            ("help-serve", ("serve",))):  # fmt: skip
        narrow(check(name, *arguments, "--help").stdout)
    check("no-arguments")


def test_version():
    check("version", "--version")


def test_recipes():
    narrow(check("recipes", "convert", "--recipes").stdout)
    check("recipes-quiet", "convert", "--recipes", "--format", "quiet")


def test_convert(model):
    narrow(check("convert", "convert", "model", "out", "--workers", 2).stdout)
    check("convert-again", "convert", "model", "out", "--workers", 2)


def test_dry_run(here):
    checkpoints.gemma(here / "model", layers=9, shards=3)
    Path("mixed.toml").write_text(MIXED)
    narrow(check("dry-run", "convert", "model", "--dry-run", "--workers", 2).stdout)
    narrow(check("dry-run-mixed", "convert", "model", "-n", "-r", "mixed.toml", "--workers", 2).stdout)


def test_many_ranges_of_layers_stay_in_their_column(here):
    checkpoints.gemma(here / "model", layers=12)
    Path("odd.toml").write_text(
        'format = "tq"\nbits = 3\n[[override]]\ntensors = ["re:.*layers\\\\.[02468]\\\\..*"]\nbits = 4\nwhy = "even"\n'
    )
    narrow(check("dry-run-alternating", "convert", "model", "-n", "-r", "odd.toml", "--workers", 2).stdout)


def test_dry_run_of_experts_one_by_one(here):
    checkpoints.qwen(here / "model")
    narrow(check("dry-run-qwen", "convert", "model", "-n", "-r", "tq3-sensitive", "--workers", 2).stdout)


def test_machine_formats(model):
    check("convert-json", "convert", "model", "out", "--format", "json")
    check("convert-quiet", "convert", "model", "quiet", "--format", "quiet")
    check("dry-run-quiet", "convert", "model", "-n", "--format", "quiet")
    check("inspect-quiet", "inspect", "out", "--format", "quiet")
    check("inspect-json", "inspect", "out", "--format", "json")
    check("verify-quiet", "inspect", "out", "--verify", "--format", "quiet")


def test_inspect(out):
    narrow(check("inspect", "inspect", "out").stdout)
    narrow(check("inspect-source", "inspect", "model").stdout)
    check("inspect-tensors", "inspect", "out", "--tensors", "*layers.0.self_attn*")
    check("inspect-recipe", "inspect", "out", "--recipe")
    check("inspect-verify", "inspect", "out", "--verify")
    check("inspect-verify-source", "inspect", "out", "--verify", "--source", "model", "--all")


def test_diff(out):
    from support.command import succeed

    succeed("convert", "model", "other", "--set", 'protect=["embed", "head", "router", "vision", "audio", "down"]')
    check("inspect-diff", "inspect", "out", "--diff", "other")


def test_a_failed_verification(out):
    dtype, shape, data = checkpoints.read_file(out / "model.safetensors")[Q_PROJ + ".trellis_codes"]
    checkpoints.rewrite(out, {Q_PROJ + ".trellis_codes": (dtype, shape, b"\xff" + data[1:])})
    check("verify-failed", "inspect", "out", "--verify")


def test_flags_that_do_not_go_together(out):
    check("flags-views", "inspect", "out", "--verify", "--names")
    check("flags-source", "inspect", "out", "--source", "model")
    check("flags-all", "inspect", "out", "--verify", "--all")
    check("flags-stream", "convert", "model", "x", "--stream", "--all")
    check("flags-unknown", "convert", "model", "x", "--bits", "4")
    check("flags-workers", "convert", "model", "x", "--workers", "0")


def test_what_is_missing(model):
    check("which-model", "convert", "--dry-run")
    check("where-to", "convert", "model", "--workers", 2)
    check("no-such-model", "convert", "nowhere", "out")
    check("no-such-recipe", "convert", "model", "out", "-r", "tq5")
    check("no-such-size", "convert", "model", "out", "--shard-size", "5 apples")
    check("size-of-nothing", "convert", "model", "out", "--shard-size", "0GB")
    assert not Path("out").exists()


def test_wrong_recipes(model):
    for name, text in {
        "typo": 'format = "tq"\nbits = 3\ngroupsize = 64\n',
        "role": 'format = "tq"\nbits = 3\n[[override]]\nroles = ["dwon"]\nbits = 4\n',
        "dead": 'format = "tq"\nbits = 3\n[[override]]\ntensors = ["*.down_projj"]\nbits = 4\n',
        "fused": 'format = "tq"\nbits = 3\n[[override]]\nwhy = "sharp keys"\nroles = ["k"]\nbits = 4\n',
        "toml": 'format = "tq\n',
    }.items():
        Path(f"{name}.toml").write_text(text)
        check(f"recipe-{name}", "convert", "model", "out", "-r", f"{name}.toml")
    check("recipe-set", "convert", "model", "out", "--set", "bits=5")
    check("recipe-set-form", "convert", "model", "out", "--set", "bits")


def test_an_unknown_architecture(model):
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"model_type": "gemma4",', '"model_type": "lamma",', 1))
    check("unknown-architecture", "convert", "model", "out")
    check("unknown-architecture-inspect", "inspect", "model")


def test_a_compressed_source(out):
    check("compressed-source", "convert", "out", "twice")


def test_notes_on_files(model):
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"x")
    check("notes", "convert", "model", "--dry-run", "--workers", 2)


@pytest.fixture
def served(here) -> Path:
    """Of as many layers as one has that transformers has nothing to say about."""
    from support.command import succeed

    checkpoints.gemma(here / "model", layers=6)
    succeed("convert", "model", "out")
    return here / "out"


def test_serve(served):
    for_cpu = ("--engine", "cpu", "--print")
    check("serve-print", "serve", "out", *for_cpu, "--activations", "float")
    check("serve-print-plain", "serve", "model", *for_cpu)
    check("serve-print-all", "serve", "out", *for_cpu, "--kv", "k4v3", "--host", "0.0.0.0", "--port", 1234,
          "--api-key", "secret", "--served-model-name", "a name", "--max-model-len", 99, "--max-waiting", 3,
          "--grace", 1.5, "--activations", "float")  # fmt: skip
    check("serve-vllm-native", "serve", "out", "--engine", "vllm", "--print", "--kv", "k4v3", "--activations", "int8")
    check("serve-vllm-print", "serve", "model", "--engine", "vllm", "--print", "--kv", "fp8", "--api-key", "secret",
          "--", "-tp", 2, "--hf-overrides", '{"a": 1}')  # fmt: skip


def test_serve_refuses(served):
    vllm = ("--engine", "vllm", "--print")
    refusals = {
        "serve-vllm-cache": ("model", *vllm, "--kv", "fp4"),
        "serve-vllm-flag": ("model", *vllm, "--", "--port", "80"),
        "serve-vllm-grace": ("model", *vllm, "--grace", "1"),
        "serve-cpu-flag": ("out", "--engine", "cpu", "--", "--enforce-eager"),
        "serve-cpu-cache": ("out", "--engine", "cpu", "--kv", "fp8"),
        "serve-vllm-offload": ("model", *vllm, "--offload-experts", "1"),
        "serve-cpu-offload": ("out", "--engine", "cpu", "--offload-experts", "1"),
        "serve-activations": ("model", "--engine", "cpu", "--activations", "int8"),
        "serve-vllm-activations": ("model", *vllm, "--activations", "float"),
        "serve-cache": ("out", "--engine", "cpu", "--kv", "q4"),
        "serve-context": ("out", "--engine", "cpu", "--max-model-len", "999999"),
        "serve-engine": ("out", "--engine", "gpu"),
        "serve-key": ("out", "--api-key", " "),
        "serve-what": ("out", "more"),
        "serve-nowhere": ("nowhere",),
    }
    for name, arguments in refusals.items():
        assert check(name, "serve", *arguments).code == 2


def test_serve_an_unfinished_folder(served):
    (served / ".tq-journal.jsonl").write_text("")
    check("serve-unfinished", "serve", "out", "--engine", "cpu")


def test_serve_without_the_packages(served, monkeypatch):
    from importlib import util

    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name == "uvicorn" else find_spec(name, *more))
    check("serve-not-installed", "serve", "out", "--engine", "cpu")
