"""The native layout: the source's weights under their own names, each as a pair of tensors; the page is
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
from tqcli.formats.native import EXTENDED_FORMAT, GUARD, NATIVE_FORMAT, USUAL_SEED
from tqcli.formats.native_section import CODEBOOKS, NativeFormat, codebooks, section
from tqcli.formats.tq import Tq
from tqcli.layouts.files import index_json, numbered_shards, plain_config, same_names, to_json
from tqcli.plan import Plan
from tqcli.readers.find import Contents
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
        formats = native_formats(plan)
        published = all(isinstance(one, Tq) for one in formats.values())
        books = codebooks(formats.values())
        return {
            "format": NATIVE_FORMAT if published else EXTENDED_FORMAT,
            **(_published_keys(plan.packed) if published else {}),
            **({CODEBOOKS: books} if books else {}),
            "compressed_layers": len(plan.packed),
        }


LAYOUT = NativeLayout()


def config_json(plan: Plan) -> bytes:
    """The source's config.json, its quantization section, and the guard against loading without the plug-in."""
    config = plain_config(plan.source)
    formats = native_formats(plan)
    if formats:
        config["quantization_config"] = section(_default(plan, formats), formats)
        config["transformers_weights"] = GUARD
    return to_json(config)


def native_formats(plan: Plan) -> dict[str, NativeFormat]:
    """Weight's name -> its format. RuntimeError where a format belongs to another layout."""
    found: dict[str, NativeFormat] = {}
    for decision in plan.packed:
        if not isinstance(decision.format, NativeFormat):
            raise RuntimeError(f"the native layout has no place for {decision.label}")
        found[decision.weight.name] = decision.format
    return found


def _default(plan: Plan, formats: Mapping[str, NativeFormat]) -> NativeFormat:
    """What most weights are in, as the recipe says it."""
    stored_as = plan.recipe.stored_as
    return stored_as if isinstance(stored_as, NativeFormat) else next(iter(formats.values()))


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
