"""Build hook: a wheel or an editable install gets the compiled kernels where a C++ compiler is at hand.

Without one the package installs as pure Python and `tq_kernels.backend().reason` says what is slower.
"""

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles kernels/cpu and marks the wheel with its platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before the files of a target are collected. `version` is standard or editable."""
        if self.target_name != "wheel":
            return
        builder = _builder(Path(self.root))
        try:
            builder.build()
        except builder.BuildFailed as failure:
            self.app.display_warning(f"{version} install without compiled kernels, which is slower: {failure}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"


def _builder(root: Path) -> ModuleType:
    # The folder is no package: hatchling loads this file by its path, and so does this file its neighbour.
    path = root / "kernels" / "cpu" / "build_library.py"
    specification = importlib.util.spec_from_file_location("build_library", path)
    if specification is None or specification.loader is None:
        raise RuntimeError(f"`{path}` cannot be loaded")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
