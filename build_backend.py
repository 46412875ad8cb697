"""The build backend: setuptools, and torch as one more build requirement where the target environment lacks it.

The extension needs torch's headers, of any version from 2.13 on. Under build isolation torch is not importable, but the
target environment's copy can be found by path; only where there is none does an isolated build have to install its own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that are not changed here

MINIMUM_TORCH = (2, 13)


def find_torch() -> tuple[Path, str] | None:
    """Folder and version of a torch that the extension can be built on, without importing it; ``None`` if none."""
    folders = []
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent)
    folders += [Path(sysconfig.get_path(kind)) / "torch" for kind in ("purelib", "platlib")]
    if site.ENABLE_USER_SITE:
        folders.append(Path(site.getusersitepackages()) / "torch")
    for folder in folders:
        version = _torch_version(folder)
        if version is not None and (folder / "include/torch/csrc/stable/library.h").exists():
            return folder, version
    return None


def _torch_version(folder: Path) -> str | None:
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"__version__ = ['\"]((\d+)\.(\d+)[^'\"]*)['\"]", text)
    if found is None or (int(found[2]), int(found[3])) < MINIMUM_TORCH:
        return None
    return found[1]


def find_compiler() -> str | None:
    """The C++ compiler that CMake will use: that of ``CXX`` or the first of the usual names; ``None`` if none."""
    named = shlex.split(os.environ.get("CXX", ""))
    return next((path for name in named[:1] or ["c++", "g++", "clang++"] if (path := shutil.which(name))), None)


def _torch_requirement() -> list[str]:
    if os.environ.get("CRANE_BUILD") == "0" or find_compiler() is None or find_torch() is not None:
        return []
    return ["torch>=" + ".".join(map(str, MINIMUM_TORCH))]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Build requirements of a wheel (PEP 517)."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """Build requirements of an editable install (PEP 660)."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_requirement()]
