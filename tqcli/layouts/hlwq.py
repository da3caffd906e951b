"""The HLWQ folder: compressed weights in `polar_state`, as published, and every other tensor in `model-extra`.

Published folders hold no other tensor, no table and no word about it; ours are whole, and hlwq_config.json holds the
levels. Experts are slices of the fused tensor, `..._e0` and on, gate and up together. A tied embedding keeps its own
name, where published files call it `lm_head.weight`. There is no index: it would have to name both kinds of files, and
transformers would take such a folder for a plain one. Left out: reading tensors' names (`readers.hlwq`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tq_kernels.hlwq import BLOCK, blocks

from tqcli.architectures.base import Architecture
from tqcli.arrangement import Arrangement
from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.sidecars import CONFIG_NAME
from tqcli.checkpoint.writer import ShardLayout, lay_out_shards
from tqcli.codec.hlwq_tables import levels
from tqcli.decision import Decision
from tqcli.errors import InputError
from tqcli.formats.hlwq import META, NORMS, PACKED, Hlwq
from tqcli.formats.hlwq_files import EXTRA, HLWQ_CONFIG_NAME, OWN_METHOD, QUANT_METHOD, STATE
from tqcli.formats.native import GUARD
from tqcli.layouts.experts import LEAVES, is_stack, one_by_one, paired, sliced, stacked
from tqcli.layouts.files import plain_config, same_names, to_json
from tqcli.plan import Plan
from tqcli.readers.find import Contents
from tqcli.version import __version__
from tqcli.weights import Weight

_PACKING = "highest-first"
# What Mixtral calls the matrices of an expert.
_OTHER_LEAVES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


class HlwqLayout:
    """Original names, but for the experts."""

    name = "hlwq"

    def arrange(self, originals: Sequence[Weight], source: Checkpoint) -> Arrangement:
        """Each expert is a slice of the fused tensor, also where the source has its matrices apart."""
        del source
        weights: list[Weight] = []
        for weight in paired(originals):
            weights += sliced(weight) if is_stack(weight) else [weight]
        return Arrangement(self.name, tuple(weights))

    def restore(self, contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
        """Slices joined, then cut into single matrices where the architecture's checkpoints have them so."""
        for packed in contents.packed.values():
            if packed.shape is None:
                why = "the folder does not say how many of its columns are padding"
                raise InputError(
                    f"the shape of `{packed.name}` is not known", why=why, fix="--base MODEL names the model"
                )
        weights = stacked(same_names(contents, source, architecture), source.config)
        if architecture.stacked_experts:
            return weights
        apart = ([*one_by_one(one)] if is_stack(one) else [one] for one in weights)
        return tuple(_original(one, architecture) for ones in apart for one in ones)

    def lay_out(self, decisions: Sequence[Decision], source: Checkpoint, shard_bytes: int) -> tuple[ShardLayout, ...]:
        """`polar_state.safetensors` and `model-extra.safetensors`, each numbered where it is larger than allowed."""
        del source
        packed = [decision.stored for decision in decisions if decision.format]
        kept = [decision.stored for decision in decisions if not decision.format]
        parts = ((STATE, packed), (EXTRA, kept))
        return tuple(
            replace(one, name=stem + one.name.removeprefix("model"))
            for stem, units in parts
            if units
            for one in lay_out_shards(units, shard_bytes)
        )

    def documents(self, plan: Plan) -> dict[str, bytes]:
        """hlwq_config.json and config.json."""
        config = plain_config(plan.source)
        # Without a file of the usual name stock transformers stops; the guard says what to do.
        config["quantization_config"] = quantization_config(plan)
        config["transformers_weights"] = GUARD
        return {HLWQ_CONFIG_NAME: to_json(hlwq_config(plan)), CONFIG_NAME: to_json(config)}

    def record(self, plan: Plan) -> Mapping[str, Any]:
        """Its name alone."""
        del plan
        return {"format": self.name}


LAYOUT = HlwqLayout()


def in_slices(checkpoint: Checkpoint, architecture: Architecture) -> Checkpoint:
    """The same folder with plain stacks of experts seen as slices, which is how sources are arranged to be compared:
    polar_engine left experts as they were.
    """
    tensors: dict[str, TensorInfo] = {}
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) != 3 or not set(architecture.classify(tensor.name).roles) <= set(LEAVES):
            tensors[tensor.name] = tensor
            continue
        nbytes = tensor.nbytes // max(tensor.shape[0], 1)
        for expert in range(tensor.shape[0]):
            name, offset = f"{tensor.name}_e{expert}", tensor.offset + expert * nbytes
            tensors[name] = replace(tensor, name=name, shape=tensor.shape[1:], offset=offset, nbytes=nbytes)
    return replace(checkpoint, tensors=tensors)


def quantization_config(plan: Plan) -> dict[str, Any]:
    """The section of config.json: the published keys. A table that published readers do not have is another method to
    them, so that they stop.
    """
    formats = _formats(plan)
    readable = all(one.table == "truncated" for one in formats)
    default = _default(plan)
    return {
        "quant_method": QUANT_METHOD if readable else OWN_METHOD,
        "format": f"hlwq-q{default.bits}",
        **default.config(),
        "bit_assignment": {},
        "layers": {_module(decision): _layer(decision) for decision in plan.packed if decision.role.expert is None},
        "tool": f"tqcli {__version__}",
    }


def hlwq_config(plan: Plan) -> dict[str, Any]:
    """What a reader needs that knows nothing else: names, sizes, packing, and the levels of every width."""
    default = _default(plan)
    packed = plan.packed
    parameters = sum(decision.weight.parameters for decision in packed)
    nbytes = sum(decision.nbytes for decision in packed)
    return {
        "method": OWN_METHOD,
        "format": f"hlwq-q{default.bits}",
        **default.config(),
        **_head_dim(plan.source.config),
        "packing": _PACKING,
        "tensors": f"K{PACKED} uint8, K{NORMS} float16 (rows, blocks), K{META} int64: rows, blocks, {BLOCK}, "
        "rows * blocks * 128, in_features; K is a weight's full name, with _e<number> for an expert of a fused tensor",
        "levels": {f"{one.table} {one.bits}": _digits(one) for one in _formats(plan)},
        "base_model": plan.source.storage.origin,
        "stats": {
            "weights": len(packed),
            "parameters": parameters,
            "bytes": nbytes,
            "bits_per_weight": round(nbytes * 8 / parameters, 4) if parameters else 0.0,
        },
        "tool": f"tqcli {__version__}",
    }


def _default(plan: Plan) -> Hlwq:
    """The recipe's, or the first that is used where an override alone compresses."""
    chosen = plan.recipe.stored_as
    formats = _formats(plan)
    return chosen if isinstance(chosen, Hlwq) else formats[0] if formats else Hlwq()


def _formats(plan: Plan) -> list[Hlwq]:
    return list(dict.fromkeys(d.format for d in plan.packed if isinstance(d.format, Hlwq)))


def _digits(stored_as: Hlwq) -> list[float]:
    """The levels to the digits that float32 needs."""
    return [float(str(level)) for level in levels(stored_as.table, stored_as.bits)]


def _layer(decision: Decision) -> dict[str, Any]:
    rows, columns = decision.weight.rows, decision.weight.columns
    count = blocks(columns)
    return {
        "in_features": columns,
        "out_features": rows,
        "in_features_padded": count * BLOCK,
        "n_blocks": count,
        "bits": decision.format.bits if isinstance(decision.format, Hlwq) else 0,
        "block_size": BLOCK,
    }


def _module(decision: Decision) -> str:
    return decision.weight.name.removesuffix(".weight")


def _head_dim(config: Mapping[str, Any]) -> dict[str, int]:
    text = config.get("text_config")
    section = text if isinstance(text, Mapping) else config
    size = section.get("head_dim")
    return {"head_dim": size} if type(size) is int else {}


def _original(weight: Weight, architecture: Architecture) -> Weight:
    """A matrix of one expert under the name that its architecture gives it."""
    if architecture.classify(weight.name).roles != ("other",):
        return replace(weight, selector=weight.name)
    parent, _, leaf = weight.name.removesuffix(".weight").rpartition(".")
    name = f"{parent}.{_OTHER_LEAVES[leaf]}.weight" if leaf in _OTHER_LEAVES else weight.name
    known = architecture.classify(name).roles != ("other",)
    return replace(weight, name=name, selector=name) if known else weight
