"""MLX checkpoints, ours or published: a module's codes in uint32 words, scales and biases beside them.

The width of each module follows from its shapes and the group size, which config.json gives for all or for one. What it
says beside must agree. Left out: other modes than affine.
"""

import json
from collections.abc import Mapping
from typing import Any

from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.reader import Checkpoint
from tqcli.codec.floats import is_float_dtype
from tqcli.errors import InputError
from tqcli.formats.mlx import BIASES, SCALES, WEIGHT, Mlx
from tqcli.packed import PackedTensor, Part

_WIDTHS = (2, 3, 4, 5, 6, 8)
_SIZES = (32, 64, 128)


def recognises(checkpoint: Checkpoint) -> bool:
    """By config.json, which calls its section `quantization`."""
    return isinstance(checkpoint.config.get("quantization"), Mapping)


def packed_tensors(checkpoint: Checkpoint, record: Mapping[str, Any]) -> dict[str, PackedTensor]:
    """`X.weight` -> weight. Raises InputError for a part that is missing, and for sizes that fit no width."""
    del record
    section = checkpoint.config.get("quantization")
    section = section if isinstance(section, Mapping) else {}
    _check_mode(checkpoint.storage.label, section)
    found = {}
    for name, tensor in checkpoint.tensors.items():
        module = name.removesuffix(SCALES).removesuffix(BIASES)
        if module != name and module + WEIGHT not in found:
            found[module + WEIGHT] = _weight(module, checkpoint.tensors, section)
        if tensor.dtype == "U32" and name.removesuffix(WEIGHT) + SCALES not in checkpoint.tensors:
            raise InputError(f"`{name}` has no `{SCALES}` beside it", why="a part of a weight is missing")
    return found


def _check_mode(what: str, said: Mapping[str, Any]) -> None:
    if said.get("mode", "affine") != "affine":
        raise InputError(f"`{what}` is not read here", why=f"its mode is {json.dumps(said.get('mode'))[:40]}")


def _weight(module: str, tensors: Mapping[str, TensorInfo], section: Mapping[str, Any]) -> PackedTensor:
    parts = [tensors.get(module + suffix) for suffix in (WEIGHT, SCALES, BIASES)]
    present = [part for part in parts if part is not None]
    if len(present) != len(parts):
        raise InputError(f"`{module}` is not whole", why=f"`{WEIGHT}`, `{SCALES}` and `{BIASES}` belong together")
    codes, scales, _ = present
    stored_as = _format(module, codes, scales, section)
    shape = (*scales.shape[:-1], scales.shape[-1] * stored_as.group_size)
    expected = stored_as.stored(module + WEIGHT, shape, scales.dtype)
    if [(one.dtype, one.shape) for one in expected] != [(part.dtype, part.shape) for part in present]:
        raise InputError(f"`{module}` is damaged", why="its codes, scales and biases do not go together")
    rows = scales.parameters // scales.shape[-1]
    return PackedTensor(
        name=module + WEIGHT,
        format=stored_as,
        parts=tuple(Part(part) for part in present),
        rows=rows,
        columns=shape[-1],
        shape=shape,
        dtype=scales.dtype if is_float_dtype(scales.dtype) else "BF16",
    )


def _format(module: str, codes: TensorInfo, scales: TensorInfo, section: Mapping[str, Any]) -> Mlx:
    own = section.get(module)
    said = {**section, **(own if isinstance(own, Mapping) else {})}
    _check_mode(module, said)
    size = said.get("group_size")
    known = len(scales.shape) >= 2 and scales.parameters > 0 and is_float_dtype(scales.dtype)
    if size not in _SIZES or not isinstance(size, int) or not known or len(codes.shape) != len(scales.shape):
        raise InputError(f"`{module}` is no affine weight", why=f"groups of {json.dumps(size)[:40]}")
    bits, rest = divmod(codes.shape[-1] * 32, scales.shape[-1] * size)
    if rest or bits not in _WIDTHS:
        why = f"{codes.shape[-1]} words for {scales.shape[-1]} groups of {size}"
        raise InputError(f"`{module}` has sizes that fit no width", why=why)
    if isinstance(own, Mapping) and own.get("bits") != bits:
        raise InputError(f"`{module}` is {bits}-bit", why=f"config.json says {json.dumps(own.get('bits'))[:40]}")
    return Mlx.model_validate({"bits": bits, "group_size": size})
