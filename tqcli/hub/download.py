"""Fetch whole files of a Hub repository into the Hugging Face cache, by huggingface_hub's own means."""

import glob
import threading
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.utils import tqdm

from tqcli.checkpoint.storage import LocalFolder
from tqcli.errors import MachineError
from tqcli.hub.failures import AnswerError, hub_errors
from tqcli.hub.fetch import Progress
from tqcli.hub.remote import HubFolder


def download_files(folder: HubFolder, names: tuple[str, ...], progress: Progress | None) -> LocalFolder:
    """Fetch `names` at the commit of `folder`; every file is there with its listed size, or MachineError."""
    sizes = {name: folder.files()[name] for name in names if folder.fingerprint(name)}
    total = sum(sizes.values())
    with hub_errors(folder.repository, folder.revision):
        try:
            path = snapshot_download(
                folder.repository,
                revision=folder.revision,
                allow_patterns=[glob.escape(name) for name in names],
                token=folder.token,
                library_name="tqcli",
                tqdm_class=_silent_bar(progress, total),
            )
        except RuntimeError as error:
            # The Xet transfer reports everything, a lost connection included, as a bare RuntimeError.
            raise AnswerError(f"the transfer failed: {error}") from error
    local = LocalFolder(path)
    there = local.files()
    wrong = [name for name, size in sizes.items() if there.get(name) != size]
    if wrong:
        raise MachineError(
            f"`{wrong[0]}` of `{folder.repository}` is not what was downloaded",
            why=f"it should have {sizes[wrong[0]]} bytes, the cache has {there.get(wrong[0], 'none')}",
            fix="remove it from the cache with `hf cache`, then run the command again",
        )
    if progress:
        progress(total, total)
    return local


def _silent_bar(progress: Progress | None, total: int) -> type[Any]:
    """A progress bar that draws nothing and reports the bytes written to disk."""
    lock = threading.Lock()
    done = 0

    class SilentBar(tqdm):  # type: ignore[misc]  # untyped in huggingface_hub
        def __init__(self, *args: Any, **options: Any) -> None:
            # Bytes that cross the network have a bar of their own (`.transfer`) and would count twice.
            on_disk = not str(options.get("name", "")).endswith(".transfer")
            self._counted = options.get("unit") == "B" and on_disk
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done
            if self._counted and n and progress:
                with lock:
                    done = min(done + int(n), total)
                    progress(done, total)
            return None

    return SilentBar
