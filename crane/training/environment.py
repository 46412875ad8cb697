"""What a run ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import crane_kernels  # noqa: F401  (registers the operations)
from crane_kernels import dispatch, extension


def environment() -> dict[str, Any]:
    """Versions, platform, threads, devices, the extension, and the implementation that serves each operation.

    Raises:
        UnavailableError: an implementation was requested that cannot run here.
    """
    return {
        "versions": {
            "crane": _version("crane-recommender"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "numpy": np.__version__,
        },
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "extension": extension.missing() or "built",
        "instruction_set": extension.instruction_set(),
        "cuda_kernels": extension.cuda_description(),
        "operations": operations(),
    }


def operations() -> dict[str, dict[str, Any]]:
    """For each operation, the implementation that serves a call here, whether it was requested, and why no other.

    Raises:
        UnavailableError: one was requested that cannot run here.
    """
    result = {}
    for name in dispatch.operations():
        choice = dispatch.environment_choice(name)
        result[name] = {
            "implementation": choice.implementation.name,
            "requested": choice.requested,
            "rejected": choice.rejected,
        }
    return result


def changes(began: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of two :func:`environment` differs that decides the bits of a result, a phrase each."""
    pairs = [(name, began["versions"].get(name), now["versions"][name]) for name in ("crane", "torch")]
    pairs += [(name.replace("_", " "), began[name], now[name]) for name in ("processor", "instruction_set", "threads")]
    pairs.append(("devices", ", ".join(began["devices"]), ", ".join(now["devices"])))
    for name, choice in now["operations"].items():
        before = began["operations"].get(name, choice)["implementation"]
        pairs.append((f"{name} by", before, choice["implementation"]))
    return [f"{name} {before}, now {after}" for name, before, after in pairs if before != after]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    found = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ["cpu", *found]


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
