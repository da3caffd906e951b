"""Measuring what groups are worth on a text: the same numbers whatever the threads, and the model as it was."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tqcli.architectures.base import find
from tqcli.budget.calibration import Calibration
from tqcli.budget.candidates import find_groups
from tqcli.budget.choose import Budget, choose
from tqcli.budget.meter import Meter, read_windows
from tqcli.budget.perturbation import Parameter, matrices, stored_as
from tqcli.budget.planner import Planner
from tqcli.budget.sampling import sample_errors
from tqcli.errors import InputError
from tqcli.formats.tq import Tq
from tqcli.job import DEFAULT_SHARD_BYTES, Job, plan_job
from tqcli.runtime.load import load

MODEL = Path(__file__).parents[1] / "fixtures" / "tiny_gemma4"
TEXT = "The function returns a list of the names that were read from the file, in the order in which they came. " * 60


@pytest.fixture(scope="module")
def loaded():
    return load(MODEL, dtype=torch.float32)


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def linears(model):
    found = matrices(model, find({"model_type": "gemma4"}))
    return [one for one in found if one.role.layer is not None and one.role.roles != ("router",)]


def test_every_linear_and_expert_of_the_model_is_found(loaded):
    roles = {(one.role.layer, role) for one in linears(loaded[0]) for role in one.role.roles}
    wanted = {"q", "k", "v", "o", "gate", "up", "down", "expert_gate", "expert_up", "expert_down"}
    assert {role for layer, role in roles if layer == 0} == wanted
    assert {layer for layer, _ in roles} == {0, 1, 2, 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_read_as_stored_inside_and_as_before_outside(loaded, dtype):
    one = next(one for one in linears(loaded[0]) if one.role.roles == ("expert_gate", "expert_up"))
    parameter = Parameter(one.role, torch.nn.Parameter(one.tensor.detach().to(dtype)))
    before = parameter.tensor.detach().clone()
    with stored_as([parameter], Tq(bits=3)) as error:
        inside = parameter.tensor.detach().double()
        measured = ((inside - before.double()).square().sum() / before.double().square().sum()).item()
    assert 0.02 < error < 0.04
    assert measured == pytest.approx(error, rel=0.02)
    assert torch.equal(parameter.tensor, before)


def test_weights_come_back_after_an_error(loaded):
    one = linears(loaded[0])[0]
    before = one.tensor.detach().clone()
    with pytest.raises(RuntimeError, match="stop"), stored_as([one], Tq(bits=2)):
        assert not torch.equal(one.tensor, before)
        raise RuntimeError("stop")
    assert torch.equal(one.tensor, before)


def test_divergence_is_zero_at_first_and_grows_as_bits_fall(loaded, text):
    model, tokenizer = loaded
    meter = Meter(model, read_windows(tokenizer, text, 2, 32), workers=1)
    assert meter() == 0.0
    found = {}
    for bits in (2, 4):
        with stored_as(linears(model), Tq(bits=bits)):
            found[bits] = meter()
    assert 0 < found[4] < found[2]
    assert meter() == 0.0


def test_windows_of_a_text(loaded, tmp_path, text):
    tokenizer = loaded[1]
    assert read_windows(tokenizer, text, 3, 16).shape == (3, 17)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(InputError, match="too short"):
        read_windows(tokenizer, tmp_path / "short.txt", 3, 16)
    with pytest.raises(InputError, match="cannot be read"):
        read_windows(tokenizer, tmp_path / "nothing.txt", 3, 16)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="UTF-8"):
        read_windows(tokenizer, tmp_path / "bytes.txt", 3, 16)


def test_a_model_that_gives_nan_is_refused(loaded, text):
    model, tokenizer = loaded
    windows = read_windows(tokenizer, text, 1, 16)
    one = linears(model)[0]
    before = one.tensor.detach().clone()
    try:
        with torch.no_grad():
            one.tensor.fill_(float("nan"))
        with pytest.raises(InputError, match="NaN"):
            Meter(model, windows, workers=1)
    finally:
        with torch.no_grad():
            one.tensor.copy_(before)


@pytest.mark.slow
def test_costs_do_not_depend_on_threads(text):
    plan = plan_job(Job(str(MODEL), "tq3"))
    groups = find_groups(plan, Planner(plan, DEFAULT_SHARD_BYTES).arrangement)[::4]
    errors = sample_errors(plan.source.storage, groups, workers=1)
    one, two = (Calibration(str(MODEL), plan.architecture, text, n).costs(groups, errors) for n in (1, 2))
    assert one == two
    assert len(one) == len(groups)
    for group, costs in zip(groups, one, strict=True):
        assert [candidate.bits for candidate in group.candidates] == [2, 3, 4]
        assert costs[0] > costs[1] > costs[2] > 0


@pytest.mark.slow
def test_a_trained_model_loses_less_than_with_the_same_bits_for_all(loaded):
    """Of the same size, from the weights alone: a quarter less divergence, on a text that chose nothing."""
    model, tokenizer = loaded
    text = Path(__file__).parents[2] / "docs" / "native-format.md"
    meter = Meter(model, read_windows(tokenizer, text, 8, 128), workers=1)
    plan = plan_job(Job(str(MODEL), "tq3"))
    chosen = choose(plan, Budget(file_bytes=plan.file_bytes), shard_bytes=DEFAULT_SHARD_BYTES, workers=1)
    assert chosen.plan.file_bytes <= plan.file_bytes
    assert divergence(meter, model, chosen.plan) < 0.75 * divergence(meter, model, plan)


def divergence(meter, model, plan):
    """Of a plan: every weight that it packs as it would read."""
    parameters = {(one.role.layer, one.role.roles): one for one in linears(model)}
    with ExitStack() as stack:
        for one in plan.packed:
            stack.enter_context(stored_as([parameters[one.role.layer, one.role.roles]], one.format))
        return meter()


@pytest.mark.slow
def test_calibration_on_the_command_line(text, here):
    from support.command import succeed

    text.write_text(TEXT[: len(TEXT) // 4])
    size = plan_job(Job(str(MODEL), "tq3")).file_bytes
    shown = succeed("convert", MODEL, "out", "-r", "tq3", "--budget", size, "--calibrate", text)
    assert "predicted loss -" in shown.stdout
    assert "the original runs over" in shown.stderr
    assert sum(path.stat().st_size for path in Path("out").glob("*.safetensors")) <= size
