"""HLWQ folders, ours and every published kind, told by the names of their tensors.

    bit-packed           `__packed __norms __meta`, highest bit first; the table is written nowhere: `truncated`
    one byte an index    `__codes __norms`
    polar_engine         `.codes .norms .ct` or `.ct_scaled`, packed in several ways, with its own levels

Format strings of config files are not looked at: they overlap. Left out: names of models (`hlwq_names`), single weights
(`hlwq_weight`), tensors that only the base model has.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.overlay import Overlay
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.storage import Storage
from tqcli.errors import InputError
from tqcli.formats.hlwq import Hlwq
from tqcli.formats.hlwq_files import HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME, QUANT_METHODS
from tqcli.formats.hlwq_legacy import HlwqLegacy
from tqcli.packed import PackedTensor
from tqcli.readers.hlwq_names import Bundle, bundles, original_name, text_prefix
from tqcli.readers.hlwq_said import Said, mapping, read_said
from tqcli.readers.hlwq_weight import read_weight, small_parts

_RUN_BYTES = 4 << 20
# What shows a weight of which parts may be missing: an ending, and others that must stand beside.
_SIGNS = (("__packed", ()), ("__codes", ()), ("__norms", ("__meta",)), (".codes", (".norms", ".ct", ".ct_scaled")))


def recognises(checkpoint: Checkpoint) -> bool:
    """By the names of its tensors; by config.json or files of its own where none is HLWQ."""
    if any(_shows(name, checkpoint.tensors) for name in checkpoint.tensors):
        return True
    section = mapping(checkpoint.config.get("quantization_config"))
    files = checkpoint.storage.files()
    return section.get("quant_method") in QUANT_METHODS or HLWQ_CONFIG_NAME in files or POLAR_CONFIG_NAME in files


def _shows(name: str, names: Mapping[str, TensorInfo]) -> bool:
    for ending, others in _SIGNS:
        if name.endswith(ending):
            key = name.removesuffix(ending)
            return not others or any(key + other in names for other in others)
    return False


def packed_tensors(checkpoint: Checkpoint, record: Mapping[str, Any]) -> dict[str, PackedTensor]:
    """Original name, with `_e<number>` for an expert of a fused tensor -> weight.

    Where the base model is at hand (`Overlay`), names and sizes are the base's. Raises InputError where a weight is not
    whole, files contradict each other, or there is no HLWQ weight at all.
    """
    found = bundles(checkpoint.tensors)
    if not found and "layout" not in record:
        what = f"`{checkpoint.storage.label}` says that it is HLWQ and holds no HLWQ weight"
        raise InputError(what, why="no tensor is called `__packed`, `__codes` or `.codes`")
    said = read_said(checkpoint, record)
    small = _read_small(checkpoint.storage, (part for one in found for part in small_parts(one)))
    base = checkpoint.storage.base_tensors if isinstance(checkpoint.storage, Overlay) else {}
    text = text_prefix({**base, **{one.name: one for one in found}})
    weights: dict[str, PackedTensor] = {}
    for bundle in found:
        original = original_name(bundle, base, checkpoint.config, text)
        name = original if bundle.expert is None else f"{original}_e{bundle.expert}"
        if name in weights or name in checkpoint.tensors:
            raise InputError(f"`{name[:200]}` is there twice", why=f"once as `{bundle.key[:200]}`")
        weights[name] = read_weight(bundle, name, said, small, base.get(original))
    return weights


def outline(checkpoint: Checkpoint, record: Mapping[str, Any]) -> tuple[dict[str, bool], list[str]]:
    """Without reading any content: name of each compressed weight -> whether its columns are known, and the names of
    all other tensors. Raises InputError where a weight is not whole.
    """
    found = bundles(checkpoint.tensors)
    said = read_said(checkpoint, record)
    text = text_prefix({one.name: one for one in found})
    inside = {tensor.name for one in found for tensor in one.parts.values()}
    weights = {original_name(one, {}, checkpoint.config, text): _knows_columns(one, said) for one in found}
    return weights, [name for name in checkpoint.tensors if name not in inside]


def _knows_columns(bundle: Bundle, said: Said) -> bool:
    meta = bundle.parts.get("meta")
    return (meta is not None and meta.shape == (5,)) or "in_features" in said.layer(bundle.module)


def notes(checkpoint: Checkpoint, packed: Mapping[str, PackedTensor], record: Mapping[str, Any]) -> tuple[str, ...]:
    """What kind of HLWQ a folder is, and which levels it means: a line each."""
    kinds: dict[str, int] = {}
    said = read_said(checkpoint, record)
    for name, one in packed.items():
        kind = _kind(one, told=said.table(name) is not None)
        kinds[kind] = kinds.get(kind, 0) + 1
    return tuple(f"{count} weight{'s are' if count > 1 else ' is'} HLWQ, {kind}" for kind, count in kinds.items())


def _kind(packed: PackedTensor, *, told: bool) -> str:
    stored_as = packed.format
    source = "as the folder says" if told else "which published files mean"
    if isinstance(stored_as, Hlwq):
        return f"bit-packed; levels `{stored_as.table}`, {source}"
    if not isinstance(stored_as, HlwqLegacy):
        raise TypeError(type(stored_as).__name__)
    dotted = packed.parts[0].tensor.name.endswith(".codes")
    layout = "polar_engine" if dotted else "unpacked"
    table = f"levels `{stored_as.table}`" if stored_as.table else "levels of its own"
    return f"{layout}, indices as {stored_as.packing}; {table}, {'which the file holds' if dotted else source}"


def _read_small(storage: Storage, tensors: Iterable[TensorInfo]) -> dict[str, bytes]:
    """Content by name. Neighbours are read together: a repository of the Hub has tens of thousands of them."""
    runs: list[list[TensorInfo]] = []
    for tensor in sorted(tensors, key=lambda one: (one.file, one.offset)):
        last = runs[-1][-1] if runs else None
        adjacent = last is not None and last.file == tensor.file and last.offset + last.nbytes == tensor.offset
        if adjacent and tensor.offset + tensor.nbytes - runs[-1][0].offset <= _RUN_BYTES:
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
    content = {}
    for run in runs:
        first, last = run[0], run[-1]
        data = storage.read(first.file, first.offset, last.offset + last.nbytes - first.offset)
        for tensor in run:
            begin = tensor.offset - first.offset
            content[tensor.name] = data[begin : begin + tensor.nbytes]
    return content
