import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tqcli import job
from tqcli.errors import InputError
from tqcli.quality.decoded import relative_error, write_decoded

ROWS, COLUMNS = 48, 160


class Silent:
    def resumed(self, shard, source_bytes): ...

    def advance(self, source_bytes): ...

    def shard_done(self, shard): ...


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint with two packed weights and two kept tensors, and what `tq convert` makes of it."""
    source, converted = (tmp_path_factory.mktemp(name) for name in ("source", "parent"))
    generator = torch.Generator().manual_seed(0)
    weights = {
        "model.layers.0.self_attn.q_proj.weight": torch.randn(ROWS, COLUMNS, generator=generator).bfloat16(),
        "model.layers.0.mlp.down_proj.weight": torch.randn(COLUMNS, ROWS, generator=generator).bfloat16(),
        "model.layers.0.input_layernorm.weight": torch.randn(COLUMNS, generator=generator).bfloat16(),
        "model.embed_tokens.weight": torch.randn(20, COLUMNS, generator=generator).bfloat16(),
    }
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": COLUMNS, "vocab_size": 20}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_text("{}")
    plan = job.plan_job(job.Job(str(source), "tq4"))
    folder = converted / "out"
    job.run_job(plan, folder, workers=1, overwrite=False, stream=False, every_row=True, progress=Silent())
    return source, folder


def test_a_decoded_folder_is_the_source_with_the_format_s_error(folders, tmp_path):
    source, converted = folders
    write_decoded(converted, tmp_path / "decoded")
    with safe_open(source / "model.safetensors", "pt") as file:
        truth = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with safe_open(tmp_path / "decoded" / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == truth.keys()
    lost = total = 0.0
    for name, weight in truth.items():
        if not name.endswith("proj.weight"):
            assert torch.equal(found[name].view(torch.int16), weight.view(torch.int16))
            continue
        assert found[name].dtype == torch.float32
        lost += (found[name] - weight.float()).square().sum().item()
        total += weight.float().square().sum().item()
    assert 0.001 < lost / total < 0.02
    assert relative_error(converted, source) == pytest.approx(lost / total, rel=1e-5)


def test_a_decoded_folder_is_a_plain_checkpoint(folders, tmp_path):
    source, converted = folders
    write_decoded(converted, tmp_path / "decoded")
    names = {path.name for path in (tmp_path / "decoded").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    expected = json.loads((source / "config.json").read_text())
    assert json.loads((tmp_path / "decoded" / "config.json").read_text()) == expected
    assert job.plan_job(job.Job(str(tmp_path / "decoded"), "tq4")).packed


def test_the_error_of_another_source_is_large(folders, tmp_path):
    source, converted = folders
    with safe_open(source / "model.safetensors", "pt") as file:
        save_file({name: file.get_tensor(name).roll(1) for name in file.keys()}, tmp_path / "model.safetensors")  # noqa: SIM118
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    assert relative_error(converted, tmp_path) > 1


def test_a_source_without_the_tensor_is_refused(folders, tmp_path):
    source, converted = folders
    save_file({"other.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(InputError, match="with that shape"):
        relative_error(converted, tmp_path)


def test_a_folder_that_does_not_tell_shapes_is_refused(folders, tmp_path):
    _, converted = folders
    for path in Path(converted).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tq_config.json").write_text(json.dumps({"bits": 4, "group_size": 128}))
    with pytest.raises(InputError, match="is written nowhere"):
        write_decoded(tmp_path, tmp_path / "decoded")
    assert not (tmp_path / "decoded").exists()
