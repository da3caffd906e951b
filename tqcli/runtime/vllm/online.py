"""Plain checkpoints, packed while they are loaded: each weight becomes what a conversion would have made of it.

The plan is that of `tq convert`, so the same weights are packed, in the same formats, to the same bytes. Left out:
recipes of formats that other readers have a loader for.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from tqcli.architectures.base import find
from tqcli.checkpoint.reader import open_checkpoint
from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import InputError
from tqcli.formats.native_section import NativeFormat
from tqcli.layouts.base import layout_of
from tqcli.layouts.native import NativeLayout, native_formats
from tqcli.layouts.originals import restored
from tqcli.plan import make_plan
from tqcli.readers.find import read
from tqcli.recipe import load_recipe
from tqcli.requantising import refuse_compressed, refuse_packed, refuse_unreadable
from tqcli.runtime.headers import read_headers
from tqcli.runtime.vllm.contents import Stream
from tqcli.runtime.vllm.rows import rows_of
from tqcli.runtime.vllm.sources import Files, PlainOnDisk


def online_formats(folder: Path, recipe_name: str) -> dict[str, NativeFormat]:
    """Weight's name -> its format, for those that the recipe packs.

    Raises InputError for a recipe of another layout, and for a model or a folder that `tq convert` would refuse.
    """
    recipe = load_recipe(recipe_name)
    layout = layout_of(recipe)
    if not isinstance(layout, NativeLayout):
        why = "its formats have loaders of their own in vLLM"
        raise InputError(f"recipe `{recipe_name}` is none for loading", why=why, fix="tq convert, and serve the folder")
    with LocalFolder(folder) as storage:
        source = open_checkpoint(storage)
        refuse_compressed(source)
        contents = read(source)
        refuse_packed(source, contents)
        refuse_unreadable(source, contents)
        architecture = find(source.config)
        originals = restored(contents, source, architecture)
        arrangement = layout.arrange(originals, source)
        arrangement.check(originals)
        return native_formats(make_plan(source, architecture, recipe, arrangement, lambda _: ()))


def stream(paths: Mapping[str, Path], formats: Mapping[str, NativeFormat], dtype: torch.dtype) -> Stream:
    """Every tensor of the files; those that have a format as rows that are packed when they are taken."""
    files = Files(paths)
    for name, tensor in read_headers(paths.values()).items():
        if name in formats:
            source = PlainOnDisk(name, tensor.file, tensor.shape, formats[name], files)
            yield name, rows_of(source, tensor.shape, dtype, torch.device("cpu"))
        else:
            yield name, files.tensor(tensor.file, name)
