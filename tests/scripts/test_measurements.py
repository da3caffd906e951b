"""The measuring scripts on a tiny model: they run, and their last line is JSON that says the same as their tables."""

import json

import pytest

from tqcli.budget.sensitivity import load_sensitivity


def last_line(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "bench_convert", "bench_formats", "bench_trellis", "gen_full26b", "make_tiny_model", "measure_embeddings",
        "measure_kv", "measure_quality", "measure_recipes", "measure_sensitivity", "measure_trained_errors",
        "train_tiny_model", "train_trellis",
    ],
)  # fmt: skip
def test_help(run_script, name):
    done = run_script(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"scripts/{name} " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--runtime"]])
def test_quality_falls_with_the_bits(run_script, tiny_model, tmp_path, extra):
    text = tmp_path / "text.txt"
    text.write_text("The function returns a list of the names that were read from the file. " * 40)
    options = ["--text", text, "--recipes", "tq2,tq4", "--windows", "4", "--length", "32", *extra]
    found = last_line(run_script("measure_quality", tiny_model, *options))
    coarse, fine = found["runs"]
    assert (coarse["recipe"], fine["recipe"]) == ("tq2", "tq4")
    assert coarse["tokens"] == 128
    assert 0 < fine["kl_mean"] < coarse["kl_mean"]
    assert 0.001 < fine["relative_error"] < 0.012 < 0.08 < coarse["relative_error"] < 0.13
    assert fine["bits_per_weight"] > coarse["bits_per_weight"] > 2


@pytest.mark.slow
def test_sensitivities_are_measured_and_a_budget_takes_them(run_script, tiny_model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The function returns a list of the names that were read from the file. " * 40)
    output = tmp_path / "sensitivity.json"
    options = ["--text", text, "--windows", "2", "--length", "32", "--seeds", "42", "--output", output]
    done = run_script("measure_sensitivity", tiny_model, *options)
    assert done.returncode == 0, done.stderr
    found = load_sensitivity(output)
    assert {"embed", "q", "down", "expert_down"} <= set(found.roles)
    assert min(found.roles.values()) > 0


@pytest.mark.slow
def test_conversion_is_measured(run_script, tiny_model, tmp_path):
    found = last_line(run_script("bench_convert", tiny_model, "--runs", "2", "--scratch", tmp_path))
    assert set(found["medians"]) == {"tq norm", "tq search"}
    for run in found["medians"].values():
        assert 0.05 < run["cpu_seconds"] < 60
        assert 10e6 < run["anonymous_peak"] < run["resident_peak"] < 400e6
        assert 1_800_000 < run["weights"] < 2_000_000
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_failing_conversion_is_said(run_script, tmp_path):
    done = run_script("bench_convert", tmp_path / "nothing", "--runs", "1")
    assert done.returncode == 1
    assert "tq norm ended with" in done.stderr
    assert "nothing" in done.stderr


@pytest.mark.slow
@pytest.mark.peer
def test_the_published_encoder_is_measured(run_script, tiny_model, tmp_path):
    pytest.importorskip("turboquant_vllm")
    found = last_line(run_script("bench_convert", tiny_model, "--runs", "1", "--scales", "norm", "--against-peer"))
    ours, theirs = found["medians"]["tq norm"], found["medians"]["turboquant-plus-vllm"]
    assert ours["weights"] > 0.9 * theirs["weights"]
    assert found["ratios"]["tq norm"]["less CPU time"] > 1


@pytest.mark.slow
@pytest.mark.peer
def test_other_formats_are_measured_beside_their_peers(run_script, tiny_model, tmp_path):
    pytest.importorskip("mlx_lm")
    found = last_line(run_script("bench_formats", tiny_model, "--runs", "1", "--only", "mlx-4bit"))
    assert set(found["medians"]) == {"tq mlx-4bit scale=minmax", "tq mlx-4bit", "mlx_lm.convert 4-bit"}
    ours, theirs = found["medians"]["tq mlx-4bit scale=minmax"], found["medians"]["mlx_lm.convert 4-bit"]
    assert ours["weights"] == theirs["weights"]
    assert found["ratios"]["mlx-4bit"]["tq mlx-4bit scale=minmax"]["less resident memory"] > 1


@pytest.mark.slow
def test_errors_on_trained_weights_are_measured_for_every_format(run_script, tiny_model, root, tmp_path):
    done = run_script("measure_trained_errors", tiny_model, "--output", tmp_path / "errors.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "errors.json").read_text())["errors"]
    shipped = json.loads((root / "configs" / "trained-errors.json").read_text())["errors"]
    assert found.keys() == shipped.keys()
    assert all(0.4 < found[name] / shipped[name] < 2.5 for name in found)


@pytest.mark.slow
def test_every_recipe_is_measured(run_script, tiny_model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The function returns a list of the names that were read from the file. " * 40)
    options = ["--text", text, "--windows", "2", "--length", "16", "--json", tmp_path / "recipes.json"]
    done = run_script("measure_recipes", tiny_model, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "recipes.json").read_text())
    by_name = {run["recipe"]: run for run in found["runs"]}
    assert {"fp8-dynamic", "mlx-4bit", "hlwq-q5", "w4a16", "tq3"} <= by_name.keys()
    assert [one["recipe"] for one in found["not_measured"]] == ["bf16"]
    assert by_name["fp8-dynamic"]["relative_error"] < by_name["hlwq-q5"]["relative_error"] < 0.005
