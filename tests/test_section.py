"""config.json is what engines load by: a word changed there is found, whatever the layout."""

import json

import pytest
from support.command import succeed, tq

LAYER = "model.language_model.layers.0."
MLX = "language_model.model.layers.0.self_attn.q_proj"


def changed(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    result = tq("inspect", folder, "--verify")
    assert result.code in (1, 2)
    return result.stderr


def ignore(config):
    return config["quantization_config"]["ignore"]


@pytest.fixture
def fp8(gemma_folder, here):
    succeed("convert", gemma_folder, "out", "-r", "fp8-dynamic")
    succeed("inspect", "out", "--verify")
    return here / "out"


@pytest.fixture
def mlx(gemma_folder, here):
    succeed("convert", gemma_folder, "out", "-r", "mlx-4bit", "--set", "group_size=32")
    succeed("inspect", "out", "--verify")
    return here / "out"


def test_a_compressed_module_that_engines_would_leave_alone(fp8):
    name = LAYER + "self_attn.q_proj"
    message = changed(fp8, lambda config: ignore(config).append(name))
    assert f"`{name}.weight` is compressed" in message


def test_a_kept_module_that_engines_would_take_for_compressed(fp8):
    message = changed(fp8, lambda config: ignore(config).remove("re:.*router"))
    assert f"`{LAYER}router.proj.weight` is not compressed" in message


def test_a_pattern_that_could_run_forever_is_not_tried(fp8):
    assert "tq writes no such pattern" in changed(fp8, lambda config: ignore(config).append("re:(.*)*(.*)*(.*)*x"))


def test_a_width_that_is_not_the_modules(mlx):
    message = changed(mlx, lambda config: config["quantization"].update({MLX: {"group_size": 32, "bits": 8}}))
    assert f"`{MLX}` is 4-bit" in message


def test_two_sections_that_differ(mlx):
    message = changed(mlx, lambda config: config["quantization_config"].update(bits=8))
    assert "`quantization` and `quantization_config` of `config.json` differ" in message


def test_a_module_that_is_not_there(mlx):
    def change(config):
        for key in ("quantization", "quantization_config"):
            config[key]["language_model.model.norm"] = {"group_size": 32, "bits": 4}

    assert "`config.json` tells of `language_model.model.norm`" in changed(mlx, change)


@pytest.mark.parametrize(
    ("recipe", "key", "value"), [("w4a16", "group_size", 32), ("fp8-block", "strategy", "channel")]
)
def test_a_record_that_is_not_the_folders(gemma_folder, here, recipe, key, value):
    changes = ("--set", "group_size=64") if recipe == "w4a16" else ()
    succeed("convert", gemma_folder, "out", "-r", recipe, *changes)
    path = here / "out" / "tq_config.json"
    record = json.loads(path.read_text())
    name, entry = next((name, entry) for name, entry in record["tensors"].items() if key in entry)
    entry[key] = value
    path.write_text(json.dumps(record))
    result = tq("inspect", "out", "--verify")
    assert result.code == 1
    assert f"`{name}` is not as `tq_config.json` says" in result.stderr
