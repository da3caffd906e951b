"""One HLWQ weight from its tensors' sizes: width, packing, levels, columns. What files say beside must agree.

Only headers, sizes and tables are looked at, all of them small. Left out: names, and which tensors belong together.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from tq_kernels.floats import widen
from tq_kernels.hlwq import BITS, BLOCK, blocks

from tqcli.checkpoint.header import TensorInfo
from tqcli.codec.floats import as_array, is_float_dtype
from tqcli.codec.hlwq_tables import levels
from tqcli.codec.hlwq_variants import meta_sizes, packing_of, unscaled
from tqcli.errors import InputError
from tqcli.formats.base import Format
from tqcli.formats.hlwq import Hlwq
from tqcli.formats.hlwq_legacy import HlwqLegacy, known_table
from tqcli.packed import PackedTensor, Part
from tqcli.readers.hlwq_names import Bundle
from tqcli.readers.hlwq_said import Said

_UNPACKED_BITS = 5
_SMALL = ("meta", "ct", "ct_scaled")
_MAX_SMALL_BYTES = 4 * 256


def small_parts(bundle: Bundle) -> list[TensorInfo]:
    """The tensors whose content is needed: sizes and levels. Raises InputError for those that are too large to be."""
    found = [bundle.parts[part] for part in _SMALL if part in bundle.parts]
    for tensor in found:
        if tensor.nbytes > _MAX_SMALL_BYTES:
            raise InputError(f"`{tensor.name[:200]}` is too large", why=f"{tensor.nbytes} bytes for sizes or levels")
    return found


def read_weight(
    bundle: Bundle, name: str, said: Said, small: Mapping[str, bytes], base: TensorInfo | None
) -> PackedTensor:
    """The weight called `name` in the folder.

    small: content of `small_parts`, by name. base: the original tensor, where it is known and no expert's.
    Raises InputError where sizes, and what files say, contradict each other.
    """
    try:
        return _weight(bundle, name, said, small, base)
    except ValueError as error:
        raise InputError(f"`{name[:200]}` is damaged", why=str(error)) from error


def _weight(bundle: Bundle, name: str, said: Said, small: Mapping[str, bytes], base: TensorInfo | None) -> PackedTensor:
    codes, norms = bundle.parts.get("packed") or bundle.parts["codes"], bundle.parts["norms"]
    rows, count, columns = _sizes(bundle, norms, small)
    total = rows * count * BLOCK
    if codes.dtype not in ("U8", "I8") or norms.dtype != "F16" or not total:
        raise ValueError(f"codes are {codes.dtype}, norms {norms.dtype} {list(norms.shape)}")
    if said.block_size(bundle.module) not in (None, BLOCK):
        raise ValueError(f"blocks of {json.dumps(said.block_size(bundle.module))[:40]}, only {BLOCK} are known")
    stored_as = _format(bundle, name, said, small, codes.nbytes, total)
    columns = _columns(bundle, said, columns, base)
    if columns is not None and blocks(columns) != count:
        raise ValueError(f"{columns} columns are not {count} blocks of {BLOCK}")
    shape = None if columns is None else (rows, columns)
    _check_entry(said.entry(name), shape, stored_as)
    return PackedTensor(
        name=name,
        format=stored_as,
        parts=(Part(codes), Part(norms)),
        rows=rows,
        columns=columns or count * BLOCK,
        shape=shape,
        padding=0 if shape else BLOCK - 1,
        dtype=_dtype(said, name, base),
        extra=tuple(bundle.parts[part] for part in _SMALL if part in bundle.parts),
    )


def _sizes(bundle: Bundle, norms: TensorInfo, small: Mapping[str, bytes]) -> tuple[int, int, int | None]:
    """Rows, blocks a row, and columns where the tensors tell them."""
    meta = bundle.parts.get("meta")
    if meta is None:
        if len(norms.shape) != 2:
            raise ValueError(f"norms {list(norms.shape)} are no matrix")
        return norms.shape[0], norms.shape[1], None
    if meta.dtype != "I64":
        raise ValueError(f"its sizes are {meta.dtype}")
    numbers = as_array(small[meta.name], meta.dtype)
    shape = norms.shape
    if len(shape) == 1 and len(numbers) >= 2 and shape[0] == int(numbers[0]) * int(numbers[1]):
        shape = (int(numbers[0]), int(numbers[1]))
    if len(shape) != 2:
        raise ValueError(f"norms {list(shape)} are no matrix")
    rows, count, columns = meta_sizes(numbers, shape)
    return rows, count, columns if len(numbers) > 4 else None


def _format(bundle: Bundle, name: str, said: Said, small: Mapping[str, bytes], nbytes: int, total: int) -> Format:
    if "packed" in bundle.parts:
        bits, rest = divmod(8 * nbytes, total)
        if rest or bits not in BITS:
            raise ValueError(f"{nbytes} bytes for {total} indices fit no width")
        return Hlwq.model_validate({"bits": bits, "table": said.table(name) or "truncated"})
    if not bundle.dotted:
        bits = said.bits(bundle.module) or _UNPACKED_BITS
        if bits not in BITS:
            raise ValueError(f"{bits} bits are not known")
        table = levels(said.table(name) or "truncated", bits)
        return HlwqLegacy(packing_of(nbytes, total, bits), bits, tuple(table.tolist()))
    values = _levels(bundle, small)
    bits = len(values).bit_length() - 1
    layer = said.layer(bundle.module).get("bits", bits)
    if layer != bits:
        raise ValueError(f"it has {len(values)} levels, but is said to have {json.dumps(layer)[:40]} bits")
    return HlwqLegacy(packing_of(nbytes, total, bits), bits, values)


def _levels(bundle: Bundle, small: Mapping[str, bytes]) -> tuple[float, ...]:
    tensor = bundle.parts.get("ct") or bundle.parts["ct_scaled"]
    if not is_float_dtype(tensor.dtype) or tensor.parameters not in {1 << bits for bits in BITS}:
        raise ValueError(f"its levels are {tensor.dtype} {list(tensor.shape)}")
    values = widen(as_array(small[tensor.name], tensor.dtype), tensor.dtype)
    # Written so that NaN fails too.
    if not (np.isfinite(values).all() and (np.diff(values) > 0).all()):
        raise ValueError("its levels do not ascend")
    found = tuple((values if "ct" in bundle.parts else unscaled(values)).tolist())
    # Stored scaled, a known table comes back with the last bit changed.
    table = known_table(found)
    return tuple(levels(table, len(found).bit_length() - 1).tolist()) if table else found


def _columns(bundle: Bundle, said: Said, told: int | None, base: TensorInfo | None) -> int | None:
    """Columns without the padding: as the tensors, the files or the base tell; None where nothing does."""
    listed = said.layer(bundle.module).get("in_features")
    if listed is not None and type(listed) is not int:
        raise ValueError(f"its columns are {json.dumps(listed)[:40]}")
    there = base.shape[-1] if base is not None and base.shape else None
    known = [one for one in (told, listed, there) if one is not None]
    if len(set(known)) > 1:
        raise ValueError(f"it has {known[0]} columns here, {known[-1]} there")
    return known[0] if known else None


def _check_entry(entry: Mapping[str, Any], shape: tuple[int, ...] | None, stored_as: Format) -> None:
    """What tq recorded of a weight is exact."""
    if not entry:
        return
    wanted = {"shape": list(shape or ()), "bits": stored_as.config()["bits"]}
    found = {key: entry.get(key) for key in wanted}
    if found != wanted:
        raise ValueError(f"`tq_config.json` says {json.dumps(found)[:120]}, the tensors {json.dumps(wanted)}")


def _dtype(said: Said, name: str, base: TensorInfo | None) -> Any:
    dtype = said.entry(name).get("dtype") or (base.dtype if base else None)
    return dtype if isinstance(dtype, str) and is_float_dtype(dtype) else said.dtype()
