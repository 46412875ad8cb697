"""What a build of the CUDA kernels needs: the compiler, the architectures, and the table of registers it reports.

The kernels are built where nvcc and a CUDA build of torch are found; whether the machine has a GPU does not matter.
Environment: ``CRANE_CUDA=require`` makes missing CUDA kernels an error, ``CRANE_CUDA=0`` does not build them;
``CUDACXX`` or ``CUDA_HOME`` name another nvcc than that of PATH or /usr/local/cuda; ``TORCH_CUDA_ARCH_LIST`` the
architectures, as for torch's own extensions (``8.0;9.0+PTX``).

Run as a program, it is CMake's launcher of nvcc: it keeps what ptxas says in a file beside each object.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Machine code for A100, H100 and B200 (and what is binary compatible with them), PTX of the last for what comes after.
DEFAULT_ARCHITECTURES = ("80-real", "90-real", "100")

# torch's own names of generations, from the oldest that CUDA 13 builds for.
NAMED_ARCHITECTURES = {
    "Turing": "7.5+PTX",
    "Ampere": "8.0 8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0 10.3 12.0 12.1+PTX",
}


class CudaNotBuiltError(Exception):
    """Why there are no CUDA kernels, in a phrase that follows "because"."""


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel for one architecture."""

    name: str
    architecture: str
    registers: int
    spilled_bytes: int


@dataclass(frozen=True)
class Toolchain:
    """An nvcc that fits, and what to build for, in CMake's notation."""

    nvcc: Path
    version: str
    architectures: tuple[str, ...]


def cuda_mode() -> str:
    """The checked value of ``CRANE_CUDA``."""
    mode = os.environ.get("CRANE_CUDA", "")
    if mode not in ("", "0", "1", "require"):
        raise SystemExit(f"CRANE_CUDA: found {mode!r}, expected 0, 1 or require")
    return mode


def find_nvcc() -> Path | None:
    """The CUDA compiler, or ``None``."""
    named = os.environ.get("CUDACXX", "")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [named, *(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    found = (shutil.which(candidate) for candidate in candidates if candidate)
    return next((Path(path).resolve() for path in found if path is not None), None)


def nvcc_version(nvcc: Path) -> str:
    """Like ``13.0``."""
    found = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    if found is None:
        raise CudaNotBuiltError(f"{nvcc} does not say which release it is")
    return found[1]


def _output(nvcc: Path, option: str) -> str:
    try:
        return subprocess.run([nvcc, option], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CudaNotBuiltError(f"{nvcc} does not run: {error}") from error


def torch_cuda_version(torch_folder: Path) -> str | None:
    """The CUDA version that a torch was built with, without importing it; ``None``: a build without CUDA."""
    text = (torch_folder / "version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b[^=]*= ['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def find_toolchain(torch_folder: Path) -> Toolchain:
    """What to build with for this torch.

    Raises:
        CudaNotBuiltError: the kernels are not wanted, or something is missing.
    """
    if cuda_mode() == "0":
        raise CudaNotBuiltError("CRANE_CUDA=0 was set at build time")
    cuda = torch_cuda_version(torch_folder)
    if cuda is None:
        raise CudaNotBuiltError("the torch of the build has no CUDA")
    nvcc = find_nvcc()
    if nvcc is None:
        raise CudaNotBuiltError("nvcc was not found at build time (CUDACXX, CUDA_HOME, PATH, /usr/local/cuda)")
    version = nvcc_version(nvcc)
    if int(version.split(".")[0]) > int(cuda.split(".")[0]):
        raise CudaNotBuiltError(f"nvcc {version} is newer than the CUDA {cuda} of torch, whose driver need not know it")
    return Toolchain(nvcc, version, architectures(nvcc))


def architectures(nvcc: Path) -> tuple[str, ...]:
    """Those of ``TORCH_CUDA_ARCH_LIST``, or the default ones that this nvcc knows."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if wanted:
        numbers = " ".join(NAMED_ARCHITECTURES.get(name, name) for name in wanted).split()
        return tuple(dict.fromkeys(cmake for name in numbers for cmake in _cmake_architecture(name)))
    known = set(re.findall(r"compute_(\w+)", _output(nvcc, "--list-gpu-arch")))
    chosen = [name for name in DEFAULT_ARCHITECTURES if name.removesuffix("-real") in known]
    if not chosen:
        raise CudaNotBuiltError(f"{nvcc} knows none of the architectures {', '.join(DEFAULT_ARCHITECTURES)}")
    return (*chosen[:-1], chosen[-1].removesuffix("-real"))


def _cmake_architecture(name: str) -> list[str]:
    """CMake's words for ``9.0``, ``9.0a`` or ``9.0+PTX``."""
    found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
    if found is None:
        raise CudaNotBuiltError(f"TORCH_CUDA_ARCH_LIST has {name!r}, expected entries like 8.0, 9.0+PTX or Hopper")
    number = found[1] + found[2] + found[3]
    return [f"{number}-real", f"{number}-virtual"] if found[4] else [f"{number}-real"]


def read_kernels(output: str) -> list[Kernel]:
    """The kernels that the output of ``nvcc -Xptxas -v`` reports, by name and architecture."""
    pattern = re.compile(
        r"Compiling entry function '(?P<symbol>\w+)' for '(?P<architecture>\w+)'"
        r".*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    found = list(pattern.finditer(output))
    names = _readable([match["symbol"] for match in found])
    kernels = (
        Kernel(name, match["architecture"], int(match["registers"]), int(match["stores"]) + int(match["loads"]))
        for name, match in zip(names, found, strict=True)
    )
    return sorted(kernels, key=lambda kernel: (kernel.name, int(re.sub(r"\D", "", kernel.architecture))))


def _readable(symbols: list[str]) -> list[str]:
    """Names without mangling, namespaces and parameters, where c++filt is there to ask."""
    if not symbols or shutil.which("c++filt") is None:
        return symbols
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True)
    if done.returncode != 0:
        return symbols
    plain = (re.sub(r"crane::cuda::|\(anonymous namespace\)::|^void ", "", line) for line in done.stdout.splitlines())
    return [re.sub(r"\([^(]*$", "", line) for line in plain]


def register_table(kernels: list[Kernel]) -> str:
    """Registers of every kernel by architecture; a spill is marked."""
    columns = sorted({kernel.architecture for kernel in kernels}, key=lambda name: int(re.sub(r"\D", "", name)))
    names = sorted({kernel.name for kernel in kernels})
    cells = {(k.name, k.architecture): f"{k.registers}{'!' if k.spilled_bytes else ''}" for k in kernels}
    width = max((len(name) for name in names), default=0)
    lines = ["registers".ljust(width) + "".join(f"{column:>9}" for column in columns)]
    lines += [name.ljust(width) + "".join(f"{cells.get((name, c), '-'):>9}" for c in columns) for name in names]
    spilled = sum(1 for kernel in kernels if kernel.spilled_bytes)
    return "\n".join([*lines, f"{spilled} of {len(kernels)} spill" + (" (!)" if spilled else "")])


def kernels_of_build(work: Path) -> list[Kernel]:
    """The kernels of all objects below the build's folder."""
    return read_kernels("\n".join(path.read_text(encoding="utf-8") for path in sorted(work.rglob("*.o.ptxas"))))


def compile_and_keep(command: list[str]) -> int:
    """Run nvcc, show its output without what ptxas says of kernels, and keep all of it in ``<object>.ptxas``."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    Path(command[command.index("-o") + 1] + ".ptxas").write_text(done.stdout, encoding="utf-8")
    about_kernels = re.compile(r"^ptxas info|bytes stack frame,")
    lines = [line for line in done.stdout.splitlines() if not about_kernels.search(line)]
    print(*lines, sep="\n", end="\n" if lines else "")
    return done.returncode


if __name__ == "__main__":
    sys.exit(compile_and_keep(sys.argv[1:]))
