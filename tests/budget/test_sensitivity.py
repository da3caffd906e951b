"""What a squared error in each role costs: the shipped data, how it is shared over layers, and how it is measured."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tqcli.architectures.base import Role
from tqcli.budget.sensitivity import FILE_NAME, Sensitivity, load_sensitivity
from tqcli.recipe import recipes_folder

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "fixtures" / "tiny_gemma4"


def test_shipped_data():
    shipped = load_sensitivity()
    linears = {"q", "k", "v", "o", "gate", "up", "down", "expert_gate", "expert_up", "expert_down"}
    assert linears | {"embed"} <= shipped.roles.keys() <= set(get_args(Role))
    assert all(0 < value < 10 for value in shipped.roles.values())
    assert 1 <= shipped.first_layer < 5


def test_it_says_what_both_models_said():
    """Roles are the geometric means of what was measured, the first layer's factor the smallest."""
    data = json.loads((recipes_folder() / FILE_NAME).read_text())
    one, two = data["apart"]
    for role, value in data["roles"].items():
        assert value == pytest.approx((one["roles"][role] * two["roles"][role]) ** 0.5, rel=0.01)
    assert data["first_layer"] == min(one["first_layer"], two["first_layer"])


@pytest.mark.parametrize("layers", [1, 2, 30])
def test_layers_share_what_the_role_has(layers):
    found = Sensitivity({"q": 0.6, "embed": 2.0}, first_layer=2.5)
    each = [found.of("q", layer, layers) for layer in range(layers)]
    assert sum(each) == pytest.approx(0.6)
    assert each[0] == pytest.approx(2.5 * each[-1]) or layers == 1
    assert found.of("embed", None, layers) == 2.0
    assert found.of("head", None, layers) == pytest.approx(1.3)


@pytest.mark.slow
def test_the_script_measures_every_role(tmp_path):
    script, output = ROOT / "scripts" / "measure_sensitivity", tmp_path / "found.json"
    options = ["--text", ROOT / "docs" / "native-format.md", "--windows", "2", "--length", "64", "--seeds", "42"]
    command = [sys.executable, script, MODEL, *options, "--output", output]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found, shipped = json.loads(output.read_text())["roles"], load_sensitivity().roles
    assert found.keys() == shipped.keys()
    assert all(0.2 < found[role] / shipped[role] < 5 for role in found)
