"""Open a checkpoint together with its base model, where the checkpoint alone does not hold every tensor.

Published HLWQ folders hold only the compressed weights: norms, routers, towers, and in some even config.json, are the
base model's. Which tensors are taken is told by the base's own list: exactly those that the folder lacks. Left out:
opening either of them (`fetch`), reading them as one (`checkpoint.overlay`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from tqcli.architectures.base import Architecture, find
from tqcli.checkpoint.header import TensorInfo
from tqcli.checkpoint.json_object import parse_object
from tqcli.checkpoint.overlay import Overlay, join
from tqcli.checkpoint.reader import Checkpoint, open_checkpoint, read_header
from tqcli.checkpoint.shards import read_bounded
from tqcli.checkpoint.sidecars import CONFIG_NAME, sidecars
from tqcli.checkpoint.storage import LocalFolder, Storage
from tqcli.errors import InputError, MachineError, TqError
from tqcli.formats.hlwq_files import HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME, STATE
from tqcli.hub.fetch import download, is_hub_id, open_source
from tqcli.packed import PackedTensor
from tqcli.readers import hlwq
from tqcli.readers.find import Contents, read
from tqcli.readers.record import read_tq_config
from tqcli.requantising import base_model, why_compressed

_EXPERT = re.compile(r"(.+)_e[0-9]{1,6}")
_NAME_IT = "--base MODEL (in Python base_model=...) names the model that it was made from"
_KEYS = ("base_model", "_name_or_path")


def open_model(storage: Storage, base: str | None = None, *, token: str | bool | None = None) -> Checkpoint:
    """The checkpoint in `storage`, with its base's tensors where it is HLWQ and lacks some.

    base: folder or Hub id; None for the one that the folder itself names. Raises InputError where the base is needed
    and not named, or does not fit; MachineError where it cannot be reached.
    """
    if CONFIG_NAME not in storage.files():
        return _without_config(storage, base, token)
    checkpoint = open_checkpoint(storage)
    if base is None and not lacks_tensors(checkpoint):
        return checkpoint
    if base is not None:
        _check_kind(checkpoint)
        return joined(checkpoint, _open_base(base, token))
    named = named_base(checkpoint)
    if not named:
        what = f"`{storage.label}` does not hold every tensor of its model"
        raise InputError(what, why="norms, routers and the like are in the base model only", fix=_NAME_IT)
    try:
        return joined(checkpoint, _open_base(named, token))
    except MachineError as error:
        why = f"`{storage.label}` needs it for the tensors that it does not hold; {error.why}"
        raise MachineError(error.what, why=why, fix=_NAME_IT) from error


def lacks_tensors(checkpoint: Checkpoint) -> bool:
    """Whether an HLWQ folder cannot be read without its base: layers without norms, no embedding, unknown sizes."""
    if not hlwq.recognises(checkpoint):
        return False
    record = read_tq_config(checkpoint)
    if record.get("layout") is not None:
        return False
    packed, plain = hlwq.outline(checkpoint, record)
    if not packed:
        return False
    return not plain or not all(packed.values()) or _misses_roles(checkpoint, [*plain, *packed])


def _misses_roles(checkpoint: Checkpoint, names: Iterable[str]) -> bool:
    """What every model has and no program compresses: an embedding, and a norm in each layer."""
    try:
        architecture = find(checkpoint.config)
        layers = set(range(architecture.layers(checkpoint.config)))
    except InputError:
        return False
    roles = [architecture.classify(name) for name in names]
    normed = {role.layer for role in roles if role.roles == ("norm",)}
    return not layers <= normed or not any("embed" in role.roles for role in roles)


def wants_base(storage: Storage) -> bool:
    """Whether a folder or repository is HLWQ and not whole, config.json included."""
    if CONFIG_NAME not in storage.files():
        return _looks_like_hlwq(storage)
    return lacks_tensors(open_checkpoint(storage))


def named_base(checkpoint: Checkpoint) -> str:
    """The repository that a folder says it was made from; empty where it says none."""
    storage = checkpoint.storage
    files = [
        parse_object(read_bounded(storage, name), name)
        for name in (HLWQ_CONFIG_NAME, POLAR_CONFIG_NAME)
        if name in storage.files()
    ]
    said = [*_said([*files, checkpoint.config]), base_model(checkpoint)]
    # A folder must not choose a path of this machine.
    return next((one for one in said if is_hub_id(one)), "")


def joined(folder: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The folder, and what it lacks of the base. Raises InputError where the two do not belong together."""
    if why := why_compressed(base):
        raise InputError(f"the base model `{base.storage.label}` is compressed itself", why=why)
    storage = folder.storage.folder if isinstance(folder.storage, Overlay) else folder.storage
    known = open_checkpoint(Overlay(storage, base.storage, base.tensors))
    contents = read(known)
    architecture = find(known.config)
    held = set(_held(known, contents, base, architecture))
    unknown = sorted(held - base.tensors.keys())
    if unknown:
        why = f"{len(unknown)} of its {len(held)} tensors are not"
        raise InputError(f"`{unknown[0]}` is not in the base model `{base.storage.label}`", why=why, fix=_NAME_IT)
    _check_shapes(contents.packed, base.tensors, base.storage.label)
    return join(known, base, [name for name in base.tensors if name not in held])


def local_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with its files on this machine. Raises MachineError where what comes is something else."""
    names = [shard.name for shard in checkpoint.shards]
    storage = checkpoint.storage
    local: Storage
    if isinstance(storage, Overlay):
        taken = [name.removeprefix(storage.prefix) for name in names if name.startswith(storage.prefix)]
        own = [name for name in names if not name.startswith(storage.prefix)]
        local = storage.over(_fetched(storage.folder, own), _fetched(storage.base, taken))
    else:
        local = _fetched(storage, names)
    same = read_bounded(local, CONFIG_NAME) == checkpoint.config_bytes
    headers = all(read_header(local, shard.name).sha256 == shard.header_sha256 for shard in checkpoint.shards)
    if not (same and headers):
        raise MachineError(f"the files fetched from `{storage.label}` are not those that were listed")
    return replace(checkpoint, storage=local)


def _fetched(storage: Storage, shards: Iterable[str]) -> Storage:
    """A folder as it is; of a repository, these files and the small ones."""
    if isinstance(storage, LocalFolder):
        return storage
    from tqcli.hub.remote import HubFolder

    if not isinstance(storage, HubFolder):
        raise TypeError(f"{type(storage).__name__} cannot be fetched")
    config = [CONFIG_NAME] if CONFIG_NAME in storage.files() else []
    return download(storage, [*shards, *config, *sidecars(storage)[0]])


def _without_config(storage: Storage, base: str | None, token: str | bool | None) -> Checkpoint:
    if base is None and _looks_like_hlwq(storage):
        what = f"`{storage.label}` has no `{CONFIG_NAME}`"
        raise InputError(what, why="HLWQ folders of one width lack it, as they lack sizes", fix=_NAME_IT)
    if base is None:
        return open_checkpoint(storage)
    opened = _open_base(base, token)
    checkpoint = open_checkpoint(Overlay(storage, opened.storage, opened.tensors))
    _check_kind(checkpoint)
    return joined(checkpoint, opened)


def _looks_like_hlwq(storage: Storage) -> bool:
    """By the names of its files, where there is no config.json to say more."""
    return any(re.fullmatch(rf"(codes|{STATE}(-.*)?)\.safetensors", name) for name in storage.files())


def _open_base(base: str, token: str | bool | None) -> Checkpoint:
    try:
        return open_checkpoint(open_source(base, token=token))
    except TqError as error:
        raise type(error)(f"the base model cannot be opened: {error.what}", why=error.why, fix=_NAME_IT) from error


def _check_kind(checkpoint: Checkpoint) -> None:
    if not hlwq.recognises(checkpoint):
        what = f"`{checkpoint.storage.label}` needs no base model"
        raise InputError(what, why="only HLWQ folders lack tensors of their model", fix="leave the base model out")


def _said(files: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for file in files:
        for key in _KEYS:
            said = file.get(key)
            names = said if isinstance(said, list) else [said]
            yield from (name for name in names if isinstance(name, str))


def _held(folder: Checkpoint, contents: Contents, base: Checkpoint, architecture: Architecture) -> Iterator[str]:
    """Names of the base's tensors that the folder has, compressed or not."""
    inside = contents.plain_names
    yield from (name for name in folder.tensors if name not in inside)
    single = _single(base.tensors, architecture)
    for name in contents.packed:
        match = _EXPERT.fullmatch(name)
        if match is None or name in base.tensors:
            yield name
        elif match[1] in base.tensors:
            yield match[1]
        else:
            role = architecture.classify(name)
            matrices = single.get((role.block, role.expert), ())
            found = [one for one, roles in matrices if set(roles) & set(role.roles)]
            yield from found or [name]


def _single(names: Iterable[str], architecture: Architecture) -> dict[tuple[str, int | None], list[tuple[str, Any]]]:
    """Block and expert -> the matrices of one expert and their roles, where the base has them one by one."""
    found: dict[tuple[str, int | None], list[tuple[str, Any]]] = {}
    for name in names:
        role = architecture.classify(name)
        if role.expert is not None:
            found.setdefault((role.block, role.expert), []).append((name, role.roles))
    return found


def _check_shapes(packed: Mapping[str, PackedTensor], base: Mapping[str, TensorInfo], label: str) -> None:
    for name, one in packed.items():
        match = _EXPERT.fullmatch(name)
        there = base.get(name) or (base.get(match[1]) if match else None)
        if there is None:
            continue
        shape = there.shape if name in base else there.shape[1:]
        if one.shape != shape:
            why = f"{list(one.shape or ())} here, {list(shape)} in `{label}`"
            raise InputError(f"`{name}` has another shape than in the base model", why=why, fix=_NAME_IT)
