"""Builds the CUDA kernels for the CPU with the stand-in of ``csrc/cuda_on_cpu`` and runs single calls of them.

The program is built with AddressSanitizer and UndefinedBehaviorSanitizer; any finding of theirs ends it.
"""

from __future__ import annotations

import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
KERNELS = (*sorted((ROOT / "csrc").rglob("*.cu")), ROOT / "csrc/cuda_on_cpu/cuda_on_cpu.cpp")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = ["-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", *SANITIZE]
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
REDUCE = {"sum": 0, "mean": 1, "max": 2}


@dataclass(frozen=True)
class Launch:
    """One kernel that ran: bytes are those of global memory, as counted in its loads and stores."""

    kernel: str
    blocks: int
    threads: int
    loaded: int
    stored: int


@dataclass(frozen=True)
class Result:
    """What a call left behind."""

    folder: Path
    launches: tuple[Launch, ...]

    def tensor(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """The output of that name."""
        return torch.frombuffer(bytearray((self.folder / f"{name}.out").read_bytes()), dtype=dtype).reshape(shape)

    @property
    def bytes_moved(self) -> int:
        """Bytes of global memory loaded and stored."""
        return sum(launch.loaded + launch.stored for launch in self.launches)


def build(program: Path, cache: Path, compiler: str, beside: tuple[Path, ...] = KERNELS) -> Path:
    """Compile ``program`` with the sources ``beside`` it; kept in ``cache`` by the content of all sources."""
    sources = [*beside, program]
    digest = hashlib.sha256(" ".join([compiler, *FLAGS]).encode())
    digest.update(subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout)
    headers = [path for pattern in ("*.h", "*.cuh") for path in sorted((ROOT / "csrc").rglob(pattern))]
    for path in [*sources, *headers]:
        digest.update(path.read_bytes())
    built = cache / f"{program.stem}-{digest.hexdigest()[:16]}"
    if built.exists():
        return built
    for old in cache.glob(f"{program.stem}-*"):
        old.unlink()

    def compile_one(source: Path) -> Path:
        target = cache / f"{program.stem}.{source.name}.o"
        command = [compiler, *FLAGS, "-x", "c++", f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run([compiler, *SANITIZE, *map(str, objects), "-o", str(built)], check=True)
    return built


def raw(array: Tensor | np.ndarray) -> bytes:
    """The bytes of an array."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


class Emulator:
    """Runs calls of a built program, each in a folder of its own."""

    def __init__(self, program: Path, scratch: Path) -> None:
        self._program = program
        self._scratch = scratch
        self._calls = 0

    def attempt(
        self, operation: str, arrays: dict[str, Tensor | np.ndarray | None], numbers: dict[str, float]
    ) -> tuple[Path, subprocess.CompletedProcess[str]]:
        """Run a call and return its folder and the finished process, whatever became of it."""
        folder = self._scratch / f"call-{self._calls}"
        self._calls += 1
        folder.mkdir()
        for name, array in arrays.items():
            if array is not None:
                (folder / f"{name}.bin").write_bytes(raw(array))
        lines = (f"{name} {float(value):.17g}\n" for name, value in numbers.items())
        (folder / "call").write_text("".join(lines), encoding="utf-8")
        return folder, subprocess.run([self._program, operation, folder], capture_output=True, text=True)

    def run(self, operation: str, arrays: dict[str, Tensor | np.ndarray | None], numbers: dict[str, float]) -> Result:
        """Run a call that must succeed."""
        folder, done = self.attempt(operation, arrays, numbers)
        assert done.returncode == 0, done.stderr
        launches = [line.split() for line in done.stdout.splitlines()]
        return Result(folder, tuple(Launch(name, *map(int, rest)) for name, *rest in launches))
