import json

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save
from support.fake_hub import FakeHub, FakeRepository


@pytest.fixture
def weights():
    return save({"a": np.arange(300_000, dtype=np.uint8), "b": np.ones((4, 5), np.float32)}, {"format": "pt"})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fake Hub that huggingface_hub talks to, with an empty cache, no login and no waiting between retries."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub() as hub:
        # The library reads its environment once, at import; what it made of it is replaced here.
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("tqcli.hub.failures.time.sleep", lambda seconds: None)
        yield hub


@pytest.fixture
def model(hub, weights):
    repository = hub.repositories["org/model"] = FakeRepository()
    config = json.dumps({"model_type": "llama"}).encode()
    files = {"config.json": config, "model.safetensors": weights, "extra/notes.txt": b"", ".gitattributes": b"x"}
    repository.commit(files)
    return repository
