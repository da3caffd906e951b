"""From a folder to a Hub and from the Hub into a model, each step a process of its own, as users have it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import succeed
from support.fake_hub_pushes import writable_hub

pytestmark = pytest.mark.slow

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny_gemma4"
LOAD = """
import json, sys, torch, tqcli
from transformers import AutoModelForCausalLM
ids = torch.tensor([[5, 17, 99, 4, 42]])
def logits(model):
    with torch.no_grad():
        return model.eval()(ids).logits.float()
local, _ = tqcli.load(sys.argv[1])
remote, tokenizer = tqcli.load("me/name")
found = [torch.equal(logits(local), logits(remote)), len(tokenizer) > 100]
if sys.argv[2] == "stock":
    stock = AutoModelForCausalLM.from_pretrained("me/name", dtype="auto")
    found.append(torch.equal(logits(local), logits(stock)))
print(json.dumps(found))
"""


def run(hub, home, *command, token="hf_good"):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    del environment["HF_TOKEN"]
    environment |= {"HF_TOKEN": token} if token else {}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.mark.parametrize(
    ("recipe", "how"), [("tq3t", "stock"), ("fp8-dynamic", "stock"), ("mlx-4bit", "ours"), ("hlwq-q5", "ours")]
)
def test_push_inspect_load(tmp_path, recipe, how):
    """As the card says that each layout is loaded."""
    out = tmp_path / "out"
    succeed("convert", FIXTURE, out, "--recipe", recipe, "--shard-size", "500KB", "--format", "quiet")
    tq = (sys.executable, "-m", "tqcli.cli.main")
    with writable_hub(tmp_path) as hub:
        arguments = ("push", str(out), "me/name", "--private", "--base", "none", "--license", "apache-2.0")
        pushed = run(hub, tmp_path / "home", *tq, *arguments, "--format", "json")
        assert pushed.returncode == 0, pushed.stderr
        assert json.loads(pushed.stdout)["url"] == f"{hub.url}/me/name"

        shown = run(hub, tmp_path / "home", *tq, "inspect", "me/name", "--format", "json")
        assert shown.returncode == 0, shown.stderr
        here = json.loads(succeed("inspect", out, "--format", "json").stdout)
        assert json.loads(shown.stdout)["roles"] == here["roles"]

        loaded = run(hub, tmp_path / "home", sys.executable, "-c", LOAD, str(out), how)
        assert loaded.returncode == 0, loaded.stderr
        assert json.loads(loaded.stdout.splitlines()[-1]) == [True] * (3 if how == "stock" else 2)

        stranger = run(hub, tmp_path / "other", *tq, "inspect", "me/name", token=None)
        assert stranger.returncode == 2
