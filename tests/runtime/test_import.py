"""`import tqcli` is light, and works whichever is imported first."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports_neither_torch_nor_transformers():
    heavy = ("torch", "transformers", "safetensors", "huggingface_hub", "pydantic", "numpy")
    assert run(f"import sys, tqcli; print([name for name in {heavy} if name in sys.modules])") == "[]"


@pytest.mark.slow
def test_the_public_names():
    assert run(
        "import tqcli; print(tqcli.__version__, len(dir(tqcli)), tqcli.load.__name__, tqcli.TqConfig.__name__)"
    ) == ("0.1.0 9 load TqConfig")


ORDERS = {
    "first": "import tqcli; from transformers import AutoModelForCausalLM as A",
    "after transformers": "import transformers; import tqcli; A = transformers.AutoModelForCausalLM",
    "after the modeling code": "import transformers.modeling_utils, tqcli; A = transformers.AutoModelForCausalLM",
    "after the model itself": "from transformers import LlamaForCausalLM as A; import tqcli",
    "twice": "import tqcli, importlib; importlib.reload(tqcli); from transformers import AutoModelForCausalLM as A",
}


@pytest.mark.parametrize("folder", ["ours", "published"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.slow
def test_import_order(order, folder, request):
    path = request.getfixturevalue(folder)["llama"]
    code = f"{ORDERS[order]}; m = A.from_pretrained({str(path)!r}); print(type(m.model.layers[0].mlp.up_proj).__name__)"
    assert run(code) == "TqLinear"


@pytest.mark.slow
def test_loading_other_models_imports_nothing_of_the_runtime_of_packed_models(sources):
    code = (
        "import sys, tqcli; from transformers import AutoModelForCausalLM as A;"
        f"m = A.from_pretrained({str(sources['llama'])!r});"
        "print(type(m.model.layers[0].mlp.up_proj).__name__, 'tqcli.runtime.transformers.quantizer' in sys.modules)"
    )
    assert run(code) == "Linear False"
