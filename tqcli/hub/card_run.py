"""How a pushed checkpoint is run, by the layout of its folder: a section of its model card.

Only loaders that tests have loaded such folders with are named, and nothing is claimed of these very weights. Left
out: what they need of a machine.
"""

from collections.abc import Callable, Mapping

from tqcli.hub.card_text import fence

_INSTALL = "pip install tqcli"
_UNTRIED = "What follows is the format's; it was tried with these very weights only where a row below says so."

_TRANSFORMERS = """import tqcli  # teaches transformers this format; without it the checkpoint refuses to load
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""

_LOAD = """import tqcli

model, tokenizer = tqcli.load("{name}")"""


def how_to_run(layout: str, repository: str, revision: str) -> str:
    """Markdown without a heading. repository: a Hub id that was checked. revision: empty for main.

    Raises KeyError for a layout that has no such text.
    """
    return "\n\n".join([_UNTRIED, *_TEXTS[layout](repository, revision)])


def _native(name: str, revision: str) -> list[str]:
    return [
        *_python(_TRANSFORMERS, name, revision),
        *_serve(name, revision),
        "vLLM, with tqcli in its environment:",
        fence(f"pip install 'tqcli[vllm]'\nvllm serve {name}{_flag(revision)}", "sh"),
    ]


def _compressed_tensors(name: str, revision: str) -> list[str]:
    return [
        *_python(_TRANSFORMERS.replace("; without it the checkpoint refuses to load", ""), name, revision),
        *_serve(name, revision),
        "vLLM, which has a loader of its own for this format:",
        fence(f"vllm serve {name}{_flag(revision)}", "sh"),
    ]


def _mlx(name: str, revision: str) -> list[str]:
    from_main = [] if revision else ["With mlx_lm:", fence(f"mlx_lm.generate --model {name} --prompt Hello", "sh")]
    return [*from_main, *_python(_LOAD, name, revision), *_serve(name, revision), "vLLM does not read this format."]


def _hlwq(name: str, revision: str) -> list[str]:
    return [*_python(_LOAD, name, revision), *_serve(name, revision), "vLLM does not read this format."]


def _python(text: str, name: str, revision: str) -> list[str]:
    text = text.replace('"{name}"', f'"{name}", revision="{revision}"' if revision else f'"{name}"')
    return ["In Python:", fence(_INSTALL, "sh"), fence(text, "python")]


def _serve(name: str, revision: str) -> list[str]:
    return ["As a server that answers OpenAI's clients:", fence(f"tq serve {name}{_flag(revision)}", "sh")]


def _flag(revision: str) -> str:
    return f" --revision {revision}" if revision else ""


_TEXTS: Mapping[str, Callable[[str, str], list[str]]] = {
    "native": _native,
    "compressed_tensors": _compressed_tensors,
    "mlx": _mlx,
    "hlwq": _hlwq,
}
