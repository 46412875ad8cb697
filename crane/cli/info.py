"""``crane info``."""

from __future__ import annotations

import argparse

from rich.console import Console

from crane.cli.errors import user_errors
from crane.cli.tables import plain_table
from crane.training.environment import environment


def run(_arguments: argparse.Namespace) -> int:
    """Print versions, extension, threads, devices and what serves each operation; returns the exit code."""
    with user_errors():
        found = environment()
    facts = [(name, version or "not installed") for name, version in found["versions"].items()]
    facts += [
        ("extension", found["extension"]),
        ("instruction set", found["instruction_set"] or "torch's own"),
        ("CUDA kernels", found["cuda_kernels"]),
        ("processor", f"{found['processor']}, {found['cores']} cores"),
        ("threads", found["threads"]),
        ("devices", ", ".join(found["devices"])),
        ("platform", found["platform"]),
    ]
    console = Console()
    console.print(plain_table(["crane", ""], facts))
    rows = []
    for name, choice in found["operations"].items():
        why = "; ".join(f"{other}: {reason}" for other, reason in choice["rejected"].items()) or "the fastest there is"
        rows.append((name, choice["implementation"], "requested" if choice["requested"] else why))
    console.print(plain_table(["operation", "served by", "why"], rows))
    return 0
