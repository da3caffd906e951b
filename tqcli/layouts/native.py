"""The native layout: the source's weights under their own names, each as codes and norms; the page is
docs/native-format.md.

config.json carries the guard against loading without the plug-in; tq_config.json the keys by which published readers
decode. Left out: how transformers reads it (`runtime.transformers`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tqcli.architectures.base import Architecture
from tqcli.arrangement import Arrangement
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.sidecars import CONFIG_NAME, INDEX_NAME
from tqcli.checkpoint.writer import ShardLayout
from tqcli.decision import Decision
from tqcli.formats.native import FORMAT_VERSION, GUARD, NATIVE_FORMAT, QUANT_METHOD, USUAL_SEED
from tqcli.formats.tq import Tq
from tqcli.layouts.files import index_json, numbered_shards, plain_config, same_names, to_json
from tqcli.plan import Plan
from tqcli.readers.find import Contents
from tqcli.version import __version__
from tqcli.weights import Weight


class NativeLayout:
    """Original names; experts stay fused."""

    name = "native"

    def arrange(self, originals: Sequence[Weight], source: Checkpoint) -> Arrangement:
        """The same weights under the same names."""
        del source
        return Arrangement(self.name, tuple(originals))

    def restore(self, contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
        """Packed pairs under their base names, the rest as it is."""
        return same_names(contents, source, architecture)

    def lay_out(self, decisions: Sequence[Decision], source: Checkpoint, shard_bytes: int) -> tuple[ShardLayout, ...]:
        """Numbered shards."""
        del source
        return numbered_shards(decisions, shard_bytes)

    def documents(self, plan: Plan) -> dict[str, bytes]:
        """The index where there are several shards, and config.json."""
        index = index_json(plan)
        config = {CONFIG_NAME: config_json(plan)}
        return config if index is None else {INDEX_NAME: index, **config}

    def record(self, plan: Plan) -> Mapping[str, Any]:
        """The keys that published readers look for."""
        return {"format": NATIVE_FORMAT, **_published_keys(plan.packed), "compressed_layers": len(plan.packed)}


LAYOUT = NativeLayout()


def config_json(plan: Plan) -> bytes:
    """The source's config.json, its quantization section, and the guard against loading without the plug-in."""
    config = plain_config(plan.source)
    if plan.packed:
        config["quantization_config"] = quantization_config(plan)
        config["transformers_weights"] = GUARD
    return to_json(config)


def quantization_config(plan: Plan) -> dict[str, Any]:
    """Defaults of the recipe, and the tensors that differ from them."""
    default = _default(plan)
    differing = {d.weight.name: d.format.config() for d in plan.packed if d.format and d.format.config() != default}
    return {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        **default,
        **({"tensors": differing} if differing else {}),
        "tool": f"tqcli {__version__}",
    }


def _default(plan: Plan) -> dict[str, Any]:
    if isinstance(plan.recipe.stored_as, Tq):
        return plan.recipe.stored_as.config()
    return next((d.format.config() for d in plan.packed if d.format), {})


def _published_keys(packed: Sequence[Decision]) -> dict[str, Any]:
    """The keys by which published readers decode; none of them where they could not, so that they stop."""
    configs = [d.format.config() for d in packed if d.format]
    group_sizes = {config["group_size"] for config in configs}
    if len(group_sizes) != 1 or any(config["seed"] != USUAL_SEED for config in configs):
        return {}
    bits = _published_bits({d.weight.name: d.format.bits for d in packed if isinstance(d.format, Tq)})
    if not bits:
        return {}
    group_size = group_sizes.pop()
    padded = {d.weight.name: d.weight.columns for d in packed if d.weight.columns % group_size}
    return {**bits, "group_size": group_size, "quantizer_seed": USUAL_SEED, "orig_in_dims": padded}


def _published_bits(bits: Mapping[str, int]) -> dict[str, Any]:
    """One width, or two that substrings of the names tell apart: all that published readers understand."""
    widths = sorted(set(bits.values()))
    if len(widths) == 1:
        return {"bits": widths[0]}
    if len(widths) != 2:
        return {}
    low, high = widths
    patterns = sorted({_last_word(name) for name, width in bits.items() if width == high})
    by_pattern = {name: high if any(p in name for p in patterns) else low for name in bits}
    if by_pattern != dict(bits):
        return {}
    return {"bits": low, "sensitive_bits": high, "sensitive_patterns": patterns}


def _last_word(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]
