"""A Hub model through the whole conversion, downloaded or streamed, against the same files from a folder."""

import json
from pathlib import Path

import pytest
from support.fake_hub import FakeRepository

from tqcli.convert import NoProgress
from tqcli.errors import InputError, MachineError
from tqcli.job import Job, plan_job, run_job

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny_gemma4"


@pytest.fixture
def tiny(hub):
    repository = hub.repositories["org/tiny"] = FakeRepository()
    repository.commit({path.name: path.read_bytes() for path in FIXTURE.iterdir()})
    return repository


def convert(source, output, *, stream=False, overwrite=False, shard_bytes=500_000):
    plan = plan_job(Job(str(source), "tq3", shard_bytes=shard_bytes))
    return run_job(plan, output, workers=2, overwrite=overwrite, stream=stream, every_row=True, progress=NoProgress())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stream", [False, True], ids=["downloaded", "streamed"])
def test_a_hub_model_gives_the_bytes_of_the_same_folder(tiny, tmp_path, stream):
    convert(FIXTURE, tmp_path / "local")
    report = convert("org/tiny", tmp_path / "out", stream=stream).report

    local, out = contents(tmp_path / "local"), contents(tmp_path / "out")
    here, there = (json.loads(files.pop("tq_config.json")) for files in (local, out))
    assert out == local
    assert there.pop("original_model") == "org/tiny"
    assert there["source"].pop("model") == "org/tiny"
    assert len(there["source"].pop("revision")) == 40
    here.pop("original_model")
    here["source"] = {"fingerprint": here["source"]["fingerprint"]}
    assert there == here
    assert report.checksums == len(there["tensors"]) + report.packed


def test_streaming_stores_nothing_of_the_source(tiny, tmp_path):
    convert("org/tiny", tmp_path / "out", stream=True)
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in cached) < 1_000_000
    assert not [path for path in cached if path.suffix == ".safetensors"]


def test_an_interrupted_stream_goes_on_where_it_stopped(tiny, tmp_path, monkeypatch):
    class Stops(NoProgress):
        def shard_done(self, shard):
            if shard.name.startswith("model-00002"):
                raise MachineError("the network went away")

    plan = plan_job(Job("org/tiny", "tq3", shard_bytes=500_000))
    with pytest.raises(MachineError):
        run_job(plan, tmp_path / "out", workers=2, overwrite=False, stream=True, every_row=False, progress=Stops())
    [first] = (tmp_path / "out").glob("model-00001-of-*.safetensors")
    written = first.stat().st_mtime_ns
    convert("org/tiny", tmp_path / "out", stream=True)

    assert first.stat().st_mtime_ns == written
    convert(FIXTURE, tmp_path / "local")
    shards = [name for name in contents(tmp_path / "local") if name.endswith(".safetensors")]
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes() for name in shards)


def test_an_unknown_architecture_is_refused_before_any_weight_is_fetched(hub, tmp_path):
    repository = hub.repositories["org/odd"] = FakeRepository()
    files = {path.name: path.read_bytes() for path in FIXTURE.iterdir()}
    config = json.loads(files["config.json"]) | {"model_type": "gemma5"}
    repository.commit(files | {"config.json": json.dumps(config).encode()})

    with pytest.raises(InputError, match="unknown architecture `gemma5`"):
        convert("org/odd", tmp_path / "out")

    largest = max(len(data) for name, data in files.items() if name.endswith(".safetensors"))
    fetched = [request for request in hub.requests if "safetensors" in str(request) and "index" not in str(request)]
    assert all(request[2] for request in fetched), "a whole shard was asked for"
    assert largest > 1_000_000
    assert not (tmp_path / "out").exists()
