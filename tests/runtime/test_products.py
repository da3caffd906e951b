"""Packed weights multiplied as integers without decoding: close to the decode path, and chosen on purpose."""

from pathlib import Path

import pytest
import torch
from support import mixed, tiny_models
from torch.nn.functional import kl_div

import tqcli
from tqcli.errors import InputError
from tqcli.formats.trellis import Trellis
from tqcli.formats.uniform import Uniform
from tqcli.runtime import products
from tqcli.runtime.products import most_tokens
from tqcli.runtime.transformers import weight as weight_module
from tqcli.runtime.transformers.activations import activations_of, set_activations
from tqcli.runtime.transformers.modules import TqLinear, TqTiedHead
from tqcli.runtime.transformers.swap import packed_weights
from tqcli.runtime.transformers.weight import TqWeight

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_gemma4"
MODELS = sorted(tiny_models.BUILDERS)

pytestmark = pytest.mark.skipif(most_tokens() < 32, reason="kernels for which few tokens or none are multiplied")


@pytest.fixture(scope="module")
def folders(sources, tmp_path_factory):
    """All native formats in one folder each."""
    root = tmp_path_factory.mktemp("products")
    return {name: mixed.write(source, root / name, *mixed.pack_tensors(source)) for name, source in sources.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The trained fixture, weights of trellis3 and a head of uniform8."""

    def choose(name, shape):
        if len(shape) < 2 or "norm" in name or "router" in name:
            return None
        return Uniform(bits=8) if "embed" in name else Trellis(bits=3)

    pytest.importorskip("transformers", minversion="5.18")
    return mixed.write(TINY, tmp_path_factory.mktemp("trained") / "x", *mixed.pack_tensors(TINY, choose))


@pytest.fixture(autouse=True)
def seed():
    """The same activations in every run: bounds hold for each of them, not for every draw."""
    torch.manual_seed(0)


@pytest.fixture
def decoded(monkeypatch):
    """Rows of each matrix that is decoded from now on."""
    rows = []
    original = weight_module.decode_packed

    def counting(*arguments, **options):
        result = original(*arguments, **options)
        rows.append(len(result))
        return result

    monkeypatch.setattr(weight_module, "decode_packed", counting)
    return rows


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def divergence(found, expected):
    """Mean KL of the next token's distributions, in nats."""
    one, other = (values.float().log_softmax(-1).flatten(0, -2) for values in (found, expected))
    return float(kl_div(one, other, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize(("activations", "least", "limit"), [("int8", 1e-5, 1e-3), ("int16", 0.0, 1e-7)])
def test_a_trained_model(activations, least, limit, trained):
    """Close to the decoded model, closer than that is to the original; where one token leads, it leads with both."""
    model, tokenizer = tqcli.load(trained, dtype=torch.float32)
    ids = tokenizer("The server reads the file and then", return_tensors="pt")["input_ids"]
    text = model.generate(ids, max_new_tokens=24, do_sample=False)
    assert text.shape[1] <= most_tokens()
    expected = logits(model, text)
    set_activations(model, activations)
    found = logits(model, text)
    lost = divergence(expected, logits(tqcli.load(TINY, dtype=torch.float32)[0], text))
    assert least < divergence(found, expected) < min(limit, lost / 10)
    best = expected.topk(2).values
    clear = best[..., 0] - best[..., 1] > (0.5 if activations == "int8" else 0.01)
    assert clear.sum() > 8
    assert torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])
    count = 4 if activations == "int8" else 24
    assert torch.equal(model.generate(ids, max_new_tokens=count, do_sample=False), text[:, : ids.shape[1] + count])
    set_activations(model, "float")
    assert torch.equal(logits(model, text), expected)


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_every_format(name, dtype, activations, tokens, folders, ids):
    """Of each weight by itself: routers of random models turn small differences into other experts."""
    model, _ = tqcli.load(folders[name], dtype=dtype, activations=activations)
    kinds = set()
    for one in packed_weights(model).values():
        hidden = torch.randn(tokens, one.shape[-1]).to(dtype)
        if one.ndim != 2 or not one.multiplies(hidden):
            continue
        kinds.add(one.stored_as.label)
        found, expected = one.multiply(hidden).double(), hidden.double() @ one.decode().double().T
        error = ((found - expected) ** 2).sum() / (expected**2).sum()
        # bfloat16 rounds the decoded weights and the result.
        assert error < (1e-4 if activations == "int8" else 3e-5) + (1e-5 if dtype == torch.bfloat16 else 0)
    assert len(kinds) > 2
    assert torch.isfinite(logits(model, ids[:1, :3])).all()


@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe"])
def test_experts(name, folders):
    """One call for all experts of all tokens, against one expert after the other."""
    model, _ = tqcli.load(folders[name], dtype=torch.float32)
    experts = [module for module in model.modules() if isinstance(getattr(module, "gate_up_proj", None), TqWeight)]
    assert experts
    for module in experts:
        hidden = torch.randn(5, module.gate_up_proj.shape[-1])
        chosen = torch.stack([torch.randperm(module.num_experts)[:2] for _ in range(5)])
        weights = torch.rand(5, 2)
        expected = module(hidden, chosen, weights)
        set_activations(module, "int8")
        found = module(hidden, chosen, weights)
        assert 0 < ((found - expected) ** 2).sum() / (expected**2).sum() < 3e-4
        for token in range(5):
            alone = module(hidden[token : token + 1], chosen[token : token + 1], weights[token : token + 1])
            assert torch.equal(alone[0], found[token])
        # Experts that are elsewhere add nothing.
        chosen[2] = module.num_experts
        some = module(hidden, chosen, weights)
        assert not some[2].any()
        assert torch.equal(some[[0, 1, 3, 4]], found[[0, 1, 3, 4]])


def test_nothing_is_decoded_but_looked_up_rows(trained, decoded):
    model, _ = tqcli.load(trained, activations="int16")
    logits(model, torch.tensor([[2, 100, 200]]))
    assert decoded == [3]


def test_many_tokens_are_decoded(trained, decoded):
    model, _ = tqcli.load(trained, dtype=torch.float32, activations="int16")
    linear = next(module for module in model.modules() if isinstance(module, TqLinear))
    few = torch.randn(most_tokens(), linear.in_features)
    many = torch.cat((few, few[:1]))
    linear(few)
    assert decoded == []
    found = linear(many)
    assert decoded == [linear.out_features]
    set_activations(model, "float")
    assert torch.equal(linear(many), found)


def test_experts_count_the_tokens_of_each(trained, decoded):
    """So many tokens that each expert meets as many as pay, then a few more."""
    model, _ = tqcli.load(trained, dtype=torch.float32, activations="int16")
    experts = next(module for module in model.modules() if isinstance(getattr(module, "gate_up_proj", None), TqWeight))
    tokens = most_tokens() * experts.num_experts
    hidden = torch.randn(tokens + 1, experts.gate_up_proj.shape[-1])
    chosen, weights = torch.arange(tokens + 1)[:, None] % experts.num_experts, torch.rand(tokens + 1, 1)
    found = experts(hidden[:-1], chosen[:-1], weights[:-1])
    assert decoded == []
    exact = experts(hidden, chosen, weights)[:-1]
    assert len(decoded) == 2 * experts.num_experts
    assert ((found - exact) ** 2).sum() < 1e-8 * (exact**2).sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_decoded(dtype, trained):
    model, _ = tqcli.load(trained, activations="int16")
    linear = next(module for module in model.modules() if isinstance(module, TqLinear))
    assert linear.weight.multiplies(torch.zeros(1, linear.in_features))
    assert not linear.weight.multiplies(torch.zeros(1, linear.in_features, dtype=dtype))
    assert not linear.weight.multiplies(torch.zeros(1, linear.in_features, requires_grad=True))


def test_the_default_is_exact(trained):
    model, _ = tqcli.load(trained)
    assert activations_of(model) == "float"
    assert not any(one.multiplies(torch.zeros(1, one.shape[-1])) for one in packed_weights(model).values())


def test_weights_stay_where_they_are(trained):
    """Products read the parameters' own memory."""
    model, _ = tqcli.load(trained, activations="int16")
    seen = []

    def watching(kind, codes, scales, *others, **options):
        seen.append((codes.data_ptr(), scales.data_ptr()))
        return torch.zeros(1, 1)

    head = next(module for module in model.modules() if isinstance(module, TqTiedHead))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "product_tensor", watching)
        head(torch.zeros(1, head.weight.shape[-1]))
    assert seen == [tuple(part.data_ptr() for part in head.weight.parts)]


def test_threads(trained):
    """Results do not depend on them, and torch has as many afterwards as before."""
    ids = torch.tensor([[2, 100, 200]])
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        model, _ = tqcli.load(trained, activations="int16")
        found.append(logits(model, ids))
        assert torch.get_num_threads() == threads
        assert {one.threads for one in packed_weights(model).values()} == {threads}
    torch.set_num_threads(1)
    assert torch.equal(*found)


def test_a_layer_that_fails_leaves_the_threads_as_they_were(trained, monkeypatch):
    torch.set_num_threads(3)
    model, _ = tqcli.load(trained, activations="int16")
    for linear in (module for module in model.modules() if isinstance(module, TqLinear)):
        monkeypatch.setattr(linear, "forward", lambda hidden: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model, torch.tensor([[2]]))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("kernels", "expected"), [("avx2", [True, True, False]), ("portable", [False] * 3)])
def test_slower_kernels_decode_sooner(kernels, expected, trained, monkeypatch):
    monkeypatch.setenv("TQ_KERNELS", kernels)
    model, _ = tqcli.load(trained, activations="int16")
    linear = next(module for module in model.modules() if isinstance(module, TqLinear))
    assert [linear.weight.multiplies(torch.zeros(n, linear.in_features)) for n in (1, 8, 9)] == expected


def test_refused(trained, monkeypatch):
    with pytest.raises(InputError, match="`int4`"):
        tqcli.load(trained, activations="int4")
    model, _ = tqcli.load(trained)
    monkeypatch.setenv("TQ_KERNELS", "reference")
    with pytest.raises(InputError, match="native kernels"):
        set_activations(model, "int16")
    assert activations_of(model) == "float"


def test_a_plain_model_stays_as_it_is(sources, ids):
    model, _ = tqcli.load(sources["llama"], activations="int16")
    assert activations_of(model) is None
    assert torch.equal(logits(model, ids), logits(tqcli.load(sources["llama"])[0], ids))
