"""Whole checkpoints against the published converter and loader, turboquant-plus-vllm 0.13.12.

Its skip rules are a recipe here; `scale = "norm"` must then give every one of its bytes, and its loader must read
what we write. The code under test is the installed package of that project, run in its own process.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tqcli.convert import NoProgress
from tqcli.job import Job, plan_job, run_job

pytestmark = [pytest.mark.peer, pytest.mark.slow]
pytest.importorskip("turboquant_vllm")

FIXTURE = Path(__file__).parent.parent / "fixtures" / "tiny_gemma4"
RECIPE = """
summary    = "what turboquant-plus-vllm 0.13.12 packs of this checkpoint"
format     = "tq"
bits       = {bits}
group_size = {group_size}
scale      = "norm"
protect    = ["embed", "head"]
keep_dtype = "float16"

[[override]]
why     = "it skips these by name"
tensors = ["*embed*", "*norm*"]
format  = "keep"

[[override]]
why     = "neither dimension reaches 128"
tensors = ["*vision_tower*"]
format  = "keep"

[[override]]
why   = "it packs routers"
roles = ["router"]
"""

WRITE = """
import sys
from turboquant_vllm.checkpoint import save_tq3_checkpoint
source, target, bits, group_size = sys.argv[1:]
save_tq3_checkpoint(source, target, bits=int(bits), group_size=int(group_size))
"""

LOGITS = """
import sys
import torch
from turboquant_vllm.checkpoint import load_tq3_model
loaded = load_tq3_model(sys.argv[1], device="cpu")
model = loaded[0] if isinstance(loaded, tuple) else loaded
with torch.no_grad():
    logits = model(input_ids=torch.tensor([[2, 100, 200, 300, 400, 500]])).logits
torch.save(logits.float(), sys.argv[2])
"""


def run(program, *arguments):
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def convert(recipe, source, target):
    plan = plan_job(Job(str(source), str(recipe)))
    run_job(plan, target, workers=2, overwrite=False, stream=False, every_row=True, progress=NoProgress())


def raw_tensors(folder):
    """Name -> (dtype, shape, bytes) of every tensor in a folder; bytes, so that NaN and -0.0 count."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                found[name] = (
                    tensor.dtype,
                    tuple(tensor.shape),
                    tensor.reshape(-1).view(torch.uint8).numpy().tobytes(),
                )
    return found


@pytest.mark.parametrize(("bits", "group_size"), [(3, 128), (4, 128), (2, 128), (3, 64)])
def test_norm_scale_gives_every_byte_of_the_published_converter(tmp_path, bits, group_size):
    recipe = tmp_path / "published.toml"
    recipe.write_text(RECIPE.format(bits=bits, group_size=group_size))
    convert(recipe, FIXTURE, tmp_path / "ours")
    run(WRITE, FIXTURE, tmp_path / "theirs", bits, group_size)

    ours, theirs = raw_tensors(tmp_path / "ours"), raw_tensors(tmp_path / "theirs")

    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert sum(name.endswith(".tq_packed") for name in ours) > 30


def test_the_published_loader_reads_ours_and_gives_the_same_logits(tmp_path):
    recipe = tmp_path / "published.toml"
    recipe.write_text(RECIPE.format(bits=3, group_size=128))
    convert(recipe, FIXTURE, tmp_path / "ours")
    run(WRITE, FIXTURE, tmp_path / "theirs", 3, 128)

    run(LOGITS, tmp_path / "ours", tmp_path / "ours.pt")
    run(LOGITS, tmp_path / "theirs", tmp_path / "theirs.pt")

    ours, theirs = torch.load(tmp_path / "ours.pt"), torch.load(tmp_path / "theirs.pt")
    assert theirs.abs().max() > 0.5
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("recipe", ["tq3", "tq3-sensitive", "tq4"])
def test_the_published_loader_decodes_our_default_recipes_as_we_do(tmp_path, recipe):
    """Searched scales, kept BF16 and two widths: logits equal those of our checkpoint freed by our own decoder."""
    import tqcli

    convert(recipe, FIXTURE, tmp_path / "ours")
    run(LOGITS, tmp_path / "ours", tmp_path / "theirs.pt")

    model, _ = tqcli.load(str(tmp_path / "ours"), dtype=torch.float16)
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([[2, 100, 200, 300, 400, 500]])).logits.float()
    theirs = torch.load(tmp_path / "theirs.pt")
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()
