"""Stock transformers with the compressed-tensors package, tqcli nowhere near: dense folders load and answer as decoded.

It runs in the environment that `scripts/setup --peers` makes for llm-compressor. Mixtures of experts are left out: that
loader has no place for experts one by one, which is why ours takes such folders (tests/runtime/test_decoded.py).
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from support import tiny_models
from support.command import succeed
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from tqcli.runtime.transformers.decoded import every_layout

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".venv-llmcompressor" / "bin" / "python"
pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.exists(), reason="no .venv-llmcompressor; run scripts/setup --peers"),
]
RECIPES = {
    "fp8-dynamic": (),
    "w4a16": ("--set", "group_size=32"),
    "mxfp4": (),
    "nvfp4a16": (),
}
IDS = list(range(5, 40))
RUN = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
folders, ids = json.load(sys.stdin)
assert "tqcli" not in sys.modules
found = {}
for name, folder in folders.items():
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.bfloat16)
    left = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits.float().flatten().tolist()
    found[name] = {"left": left, "logits": logits}
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("dense")
    (root / "llama").mkdir()
    tiny_models.BUILDERS["llama"](root / "llama")
    for recipe, changes in RECIPES.items():
        succeed("convert", root / "llama", root / recipe, "-r", recipe, *changes)
    return {recipe: str(root / recipe) for recipe in RECIPES}


@pytest.fixture(scope="module")
def theirs(folders):
    text = json.dumps([folders, IDS])
    done = subprocess.run([str(PEER), "-c", RUN], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_tensor_has_a_home(theirs, recipe):
    assert not any(theirs[recipe]["left"].values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_answers_as_the_decoded_weights_do(folders, theirs, recipe):
    with every_layout(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folders[recipe], dtype=torch.bfloat16)
        ours = model(torch.tensor([IDS])).logits.float().flatten()
    # FP8 activations are rounded while it runs.
    least = 0.99 if recipe == "fp8-dynamic" else 0.9999
    assert cosine_similarity(ours, torch.tensor(theirs[recipe]["logits"]), 0) > least
