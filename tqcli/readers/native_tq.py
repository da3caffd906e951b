"""A `tq` pair explained by its own sizes, as every published generation of the native format wrote it.

Base names with and without `.weight`, codes flat or by row, widths told by sizes where no file says them. Left out:
columns that only the model knows, which stay open.
"""

import json
from collections.abc import Mapping
from math import prod
from typing import Any

from tqcli.errors import InputError
from tqcli.formats.native import TQ_CONFIG_NAME
from tqcli.formats.tq import Tq
from tqcli.packed import PackedTensor, Part
from tqcli.readers.native_pair import Pair, Said, is_size


def packed_tensor(pair: Pair, said: Said) -> PackedTensor:
    """The weight. Raises InputError for sizes that fit no width, or not what the folder says."""
    codes, norms = pair.codes, pair.beside
    if codes.dtype != "U8" or norms.dtype != "F32" or len(norms.shape) != 2 or norms.parameters == 0:
        why = f"codes {codes.dtype}, norms {norms.dtype} {norms.shape}"
        raise InputError(f"`{pair.base}` is no packed tensor", why=why)
    tq = _geometry(pair, {**said.defaults, **said.entry})
    rows, count = norms.shape
    shape = _shape(pair, tq, said)
    return PackedTensor(
        name=pair.base,
        format=tq,
        parts=(Part(codes), Part(norms)),
        rows=rows,
        columns=shape[-1] if shape else count * tq.group_size,
        shape=shape,
        padding=0 if shape else tq.group_size - 1,
        dtype=said.dtype,
    )


def _geometry(pair: Pair, said: Mapping[str, Any]) -> Tq:
    """Bits follow from the sizes once the group size is known; what the files say must agree."""
    base, codes, norms = pair.base, pair.codes, pair.beside
    group_size, seed = said.get("group_size", 128), said.get("seed", 42)
    bits, rest = divmod(codes.parameters * 8, norms.parameters * group_size) if is_size(group_size) else (0, 1)
    if rest or bits not in (2, 3, 4) or group_size not in (32, 64, 128, 256):
        why = f"{codes.parameters} bytes of codes for {norms.parameters} groups of {group_size}"
        raise InputError(f"`{base}` has sizes that fit no width", why=why)
    rows, count = norms.shape
    width = bits * group_size // 8
    if codes.shape not in ((rows * count, width), (rows, count * width)):
        raise InputError(f"`{base}` is no packed tensor", why=f"codes {codes.shape} do not go with norms {norms.shape}")
    # Per-tensor entries are ours and exact; the global width of published folders is only a default.
    if "shape" in said and said.get("bits") != bits:
        raise InputError(f"`{base}` is {bits}-bit", why=f"`{TQ_CONFIG_NAME}` says {json.dumps(said.get('bits'))}")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise InputError(f"`{base}` has no usable seed", why=f"it is {json.dumps(seed)}")
    return Tq.model_validate({"bits": bits, "group_size": group_size, "seed": seed})


def _shape(pair: Pair, tq: Tq, said: Said) -> tuple[int, ...] | None:
    """The entry's, or, in a published folder, the rows and the columns that it lists; None where neither is there."""
    rows, count = pair.beside.shape
    shape = said.shape(pair.base)
    if shape is None:
        padded = said.config.get("orig_in_dims")
        columns = padded.get(pair.base) if isinstance(padded, Mapping) else None
        if columns is None:
            return None
        shape = Said({"shape": [rows, columns]}, {}, {}).shape(pair.base) or ()
    if prod(shape[:-1]) != rows or -(-shape[-1] // tq.group_size) != count:
        why = f"norms {rows} x {count}, {list(shape)}"
        raise InputError(f"`{pair.base}` is not as large as `{TQ_CONFIG_NAME}` says", why=why)
    return shape
