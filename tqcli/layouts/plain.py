"""A checkpoint without any compression, as transformers writes it: what `bf16` makes of a compressed folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from tqcli.architectures.base import Architecture
from tqcli.arrangement import Arrangement
from tqcli.checkpoint.reader import Checkpoint
from tqcli.checkpoint.sidecars import CONFIG_NAME, INDEX_NAME
from tqcli.checkpoint.writer import ShardLayout
from tqcli.decision import Decision
from tqcli.layouts.files import index_json, numbered_shards, plain_config, same_names, to_json
from tqcli.plan import Plan
from tqcli.readers.find import PLAIN, Contents
from tqcli.weights import Weight


class PlainLayout:
    """Original names, original shapes."""

    name = PLAIN

    def arrange(self, originals: Sequence[Weight], source: Checkpoint) -> Arrangement:
        """The same weights under the same names."""
        del source
        return Arrangement(self.name, tuple(originals))

    def restore(self, contents: Contents, source: Checkpoint, architecture: Architecture) -> tuple[Weight, ...]:
        """The tensors as they are."""
        return same_names(contents, source, architecture)

    def lay_out(self, decisions: Sequence[Decision], source: Checkpoint, shard_bytes: int) -> tuple[ShardLayout, ...]:
        """Numbered shards."""
        del source
        return numbered_shards(decisions, shard_bytes)

    def documents(self, plan: Plan) -> dict[str, bytes]:
        """The index where there are several shards, and config.json without any quantization."""
        index = index_json(plan)
        config = {CONFIG_NAME: to_json(plain_config(plan.source))}
        return config if index is None else {INDEX_NAME: index, **config}

    def record(self, plan: Plan) -> Mapping[str, Any]:
        """Its name alone."""
        del plan
        return {"format": self.name}


LAYOUT = PlainLayout()
