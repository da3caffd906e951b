"""A `trellis` or `uniform` pair: what the folder says of it holds, and the sizes of its tensors must agree.

Left out: the published pairs, of whose folders nothing but sizes can be trusted (`native_tq`).
"""

from tqcli.errors import InputError
from tqcli.formats.native import TQ_CONFIG_NAME
from tqcli.formats.native_section import read_format
from tqcli.packed import PackedTensor, Part
from tqcli.readers.native_pair import Pair, Said


def packed_tensor(pair: Pair, said: Said) -> PackedTensor:
    """The weight. Raises InputError where nothing is said of it, or its tensors are not as is said."""
    stated = {**said.entry} if said.entry.get("format") else {**said.defaults, **said.entry}
    if stated.get("format") != pair.format:
        raise InputError(f"`{pair.base}` is `{pair.format}`", why=f"the folder says {stated.get('format')!r} of it")
    stored_as = read_format(stated, said.defaults, f"`{pair.base}`")
    rows = pair.codes.shape[0] if pair.codes.shape else 0
    known = said.shape(pair.base)
    shape = known or (rows, _columns(pair, stored_as.bits))
    expected = stored_as.stored(pair.base, shape, said.dtype) if shape[-1] and not stored_as.refusal(shape) else ()
    found = tuple((one.name, one.dtype, one.shape) for one in (pair.codes, pair.beside))
    if tuple((one.name, one.dtype, one.shape) for one in expected) != found:
        why = f"{pair.codes.dtype} {list(pair.codes.shape)} and {pair.beside.dtype} {list(pair.beside.shape)}"
        raise InputError(f"`{pair.base}` is no {stored_as.label} of {list(shape)}, as `{TQ_CONFIG_NAME}` says", why=why)
    return PackedTensor(
        name=pair.base,
        format=stored_as,
        parts=(Part(pair.codes), Part(pair.beside)),
        rows=rows,
        columns=shape[-1],
        shape=known,
        # Two 4-bit codes share a byte: an odd column may be missing.
        padding=1 if known is None and pair.format == "uniform" and stored_as.bits == 4 else 0,
        dtype=said.dtype,
    )


def _columns(pair: Pair, bits: int) -> int:
    """As many as the codes have room for; tq_config.json, which has the shape, is lost."""
    width = pair.codes.shape[-1] if pair.codes.shape else 0
    return width if pair.codes.dtype == "I8" else width * 8 // bits
