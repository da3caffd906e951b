"""The greatest magnitude over weights that share a scale, and that the plan says which do."""

import numpy as np
from support import checkpoints
from support.command import succeed

from tqcli.architectures.base import TensorRole
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.greatest import Greatest
from tqcli.job import Job, plan_job
from tqcli.weights import whole

ROLE = TensorRole(("q",), 0, "block", None)


def test_over_all_of_them_and_read_once(here, monkeypatch):
    values = {"a": np.array([[1.0, -9.5], [np.nan, 2.0]]), "b": np.array([[3.0, np.inf]])}
    tensors = {name: ("F32", v.shape, v.astype(np.float32).tobytes()) for name, v in values.items()}
    checkpoints.write_checkpoint(here / "model", {}, tensors)
    with LocalFolder(here / "model") as storage:
        source = open_checkpoint(storage)
        weights = [whole(one, one.name, ROLE, "F32", one.shape) for one in source.tensors.values()]
        greatest = Greatest(storage)
        assert greatest(weights) == 9.5
        assert greatest(weights[1:]) == 3.0
        monkeypatch.setattr("tqcli.greatest.read_rows", None)
        assert greatest(weights) == 9.5


def test_projections_that_engines_fuse_share_a_scale(gemma_folder):
    decisions = plan_job(Job(str(gemma_folder), "nvfp4a16")).by_name
    layer = "model.language_model.layers.0."

    def sharing(name):
        return {one.name.removeprefix(layer).removesuffix("_proj.weight") for one in decisions[layer + name].sharing}

    assert sharing("self_attn.q_proj.weight") == {"self_attn.q", "self_attn.k", "self_attn.v"}
    assert sharing("self_attn.o_proj.weight") == {"self_attn.o"}
    assert sharing("mlp.up_proj.weight") == {"mlp.gate", "mlp.up"}
    assert sharing("experts.1.gate_proj.weight") == {"experts.1.gate", "experts.1.up"}
    assert sharing("experts.1.down_proj.weight") == {"experts.1.down"}
    assert not any(one.sharing for one in plan_job(Job(str(gemma_folder), "mxfp4")).decisions)


def test_the_scale_is_one_in_the_folder_whatever_the_threads(gemma_folder, here):
    for workers in ("1", "3"):
        succeed("convert", gemma_folder, f"out{workers}", "-r", "nvfp4a16", "--workers", workers)
    ends = tuple(f"0.self_attn.{one}_proj.weight_global_scale" for one in "qk")
    tensors = checkpoints.read_file(here / "out1" / "model.safetensors")
    scales = {name: data for name, (_, _, data) in tensors.items() if name.endswith(ends)}
    assert len(scales) == 2
    assert len(set(scales.values())) == 1
    assert (here / "out1/model.safetensors").read_bytes() == (here / "out3/model.safetensors").read_bytes()
