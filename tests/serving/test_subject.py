"""What is to be served: whole, finished, and known by its layout."""

import pytest
from support import checkpoints
from support.command import succeed

from tqcli.errors import InputError
from tqcli.serving.subject import open_subject


@pytest.fixture
def model(here):
    return checkpoints.gemma(here / "model")


def test_plain(model):
    found = open_subject("model")
    assert (found.layout, found.is_compressed, found.decoded_bytes) == ("plain", False, 0)
    assert (found.name, found.model_type) == ("model", "gemma4")
    assert found.nbytes == sum(len(data) for _, _, data in checkpoints.read_file(model / "model.safetensors").values())
    assert found.text_config["num_hidden_layers"] > 0


@pytest.mark.parametrize(
    ("recipe", "layout"), [("tq3t", "native"), ("fp8-dynamic", "compressed_tensors"), ("mlx-4bit", "mlx")]
)
def test_layouts(model, recipe, layout):
    succeed("convert", "model", "out", "--recipe", recipe)
    found = open_subject("out")
    assert (found.layout, found.is_compressed) == (layout, True)
    plain = open_subject("model").nbytes
    # Decoded weights are about as large as the original's, which has some in 32 bits; mapped ones take nothing.
    assert found.decoded_bytes == (0 if layout == "native" else pytest.approx(plain, rel=0.05))


def test_a_name_without_its_slash(model):
    assert open_subject("model/").name == "model"
    assert open_subject(".././" + model.parent.name + "/model").name == "model"


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_is_not_whole(model, lost):
    (model / lost).unlink()
    with pytest.raises(InputError):
        open_subject("model")


def test_a_truncated_file(model):
    raw = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(raw[:-1])
    with pytest.raises(InputError):
        open_subject("model")


@pytest.mark.parametrize("name", ["nowhere", "/no/such/place", "", "a/b/c"])
def test_no_model(here, name):
    with pytest.raises(InputError):
        open_subject(name)
