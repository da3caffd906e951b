"""Which engine, and why."""

import pytest

from tqcli.errors import InputError, MachineError
from tqcli.serving.choice import Engine, choose
from tqcli.serving.machine import Vllm
from tqcli.serving.subject import Subject

GPU, CPU = Vllm("0.32.0", "cuda"), Vllm("0.32.0+cpu", "cpu")
OLD = Vllm("0.31.2", "cuda")


def subject(layout: str = "plain") -> Subject:
    return Subject("out", None, layout, {}, 1, 100, 0)


@pytest.mark.parametrize(
    ("asked", "layout", "vllm", "engine", "why"),
    [
        ("auto", "plain", GPU, "vllm", "vLLM 0.32.0 and a GPU"),
        ("auto", "compressed_tensors", GPU, "vllm", "vLLM 0.32.0 and a GPU"),
        ("auto", "plain", CPU, "cpu", "no GPU"),
        ("auto", "plain", None, "cpu", "not installed"),
        ("auto", "native", GPU, "vllm", "vLLM 0.32.0 and a GPU"),
        ("auto", "native", Vllm("0.40.1", "cuda"), "vllm", "vLLM 0.40.1 and a GPU"),
        ("auto", "native", OLD, "cpu", "this is 0.31.2"),
        ("auto", "plain", OLD, "vllm", "vLLM 0.31.2 and a GPU"),
        ("auto", "hlwq", GPU, "cpu", "HLWQ"),
        ("auto", "mlx", GPU, "cpu", "MLX"),
        ("cpu", "plain", GPU, "cpu", "asked for"),
        ("vllm", "plain", CPU, "vllm", "asked for"),
    ],
)
def test_choices(asked, layout, vllm, engine, why):
    found = choose(Engine(asked), subject(layout), vllm)
    assert found.engine == engine
    assert why in found.why
    assert found.device == (vllm.device if engine == "vllm" else "cpu")


@pytest.mark.parametrize("layout", ["hlwq", "mlx"])
def test_vllm_cannot_read_it(layout):
    for only_print in (False, True):
        with pytest.raises(InputError, match="vLLM cannot read"):
            choose(Engine.vllm, subject(layout), GPU, only_print=only_print)


def test_an_older_vllm_has_no_place_for_the_plug_in():
    with pytest.raises(InputError, match=r"need vLLM 0\.32"):
        choose(Engine.vllm, subject("native"), OLD)
    with pytest.raises(InputError, match="this is main"):
        choose(Engine.vllm, subject("native"), Vllm("main", "cuda"))
    assert choose(Engine.vllm, subject("native"), None, only_print=True).engine is Engine.vllm


def test_vllm_is_not_there():
    with pytest.raises(MachineError, match="not installed"):
        choose(Engine.vllm, subject(), None)
    assert choose(Engine.vllm, subject(), None, only_print=True).engine is Engine.vllm
