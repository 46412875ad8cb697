"""Compiles every Triton kernel for every chip, with no GPU, and says what each needs.

Run as a program, in an environment without ``TRITON_INTERPRET``: prints the rows of the matrix as JSON, one a line.
``--all`` compiles every configuration for every width and dtype; without it, each configuration is compiled for one
width and one dtype, in turns.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch
from triton import compile as triton_compile
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crane_kernels import dispatch, triton_support
from crane_kernels.triton_support import Kernel

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}
# Shared memory a program may have: the CUDA programming guide's table of compute capabilities; AMD's CDNA 3 guide.
SHARED_LIMITS = {"cuda:80": 163 * 1024, "cuda:90": 227 * 1024, "cuda:100": 227 * 1024, "hip:gfx942": 64 * 1024}
MATRIX_INSTRUCTIONS = {
    "cuda:80": r"mma\.sync",
    "cuda:90": r"mma\.sync|wgmma\.mma_async",
    "cuda:100": r"mma\.sync|tcgen05\.mma",
    "hip:gfx942": r"v_mfma",
}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
WIDTHS = (16, 32, 33, 64, 100, 128, 255, 256)
POINTER_OR_SCALAR = re.compile(r"\*?(x|[iu](1|8|16|32|64)|fp(16|32|64)|bf16)")


@dataclass(frozen=True)
class Case:
    """A kernel to compile: places in KERNELS, in its configurations, in its specimens."""

    kernel: int
    config: int
    specimen: int
    dtype: str
    width: int
    target: str


@dataclass
class Row:
    """What became of a case. ``spilled`` is bytes (CUDA: all local memory) or registers (HIP)."""

    kernel: str
    target: str
    dtype: str
    width: int
    constants: str
    config: str
    error: str = ""
    shared: int = 0
    shared_limit: int = 0
    registers: int = 0
    spilled: int = 0
    dots: bool = False
    matrix_instructions: bool = False


def load_kernels() -> list[Kernel]:
    """All kernels there are: importing the operations registers them."""
    for operation in dispatch.operations():
        for candidate in dispatch._registry[operation]:
            if candidate.name == "triton":
                importlib.import_module(candidate.function.__module__)
    return triton_support.KERNELS


def cases(everything: bool) -> Iterator[Case]:
    """The cases of the matrix, by kernel."""
    for place, kernel in enumerate(load_kernels()):
        served = [pair for pair in itertools.product(TYPES, WIDTHS) if list(kernel.specimens(*pair))]
        for config, (chip, target) in itertools.product(range(len(kernel.configs)), enumerate(TARGETS)):
            # The widest, whose need is the greatest, in each dtype in turn; one narrower now and then.
            turn = place + config + chip
            widest = [pair for pair in served if pair[1] == max(width for _, width in served)]
            one = [widest[turn % len(widest)]] if turn % 4 else [served[turn % len(served)]]
            for dtype, width in served if everything else one:
                for specimen in range(len(list(kernel.specimens(dtype, width)))):
                    yield Case(place, config, specimen, TYPES[dtype], width, target)


def source(kernel: Kernel, case: Case) -> tuple[ASTSource, dict[str, Any], dict[str, Any]]:
    """The source of a case, its compile-time constants without the configuration's, and the configuration."""
    dtype = next(dtype for dtype, name in TYPES.items() if name == case.dtype)
    arguments = dict(list(kernel.specimens(dtype, case.width))[case.specimen])
    config = kernel.configs[case.config].all_kwargs()
    run_time = {
        name: value.replace("*x", f"*{case.dtype}")
        for name, value in arguments.items()
        if isinstance(value, str) and POINTER_OR_SCALAR.fullmatch(value)
    }
    constants = {name: value for name, value in arguments.items() if name not in run_time}
    own = {name: value for name, value in config.items() if name in kernel.function.arg_names}
    compiled_in = constants | own
    signature = {name: run_time.get(name, "constexpr") for name in kernel.function.arg_names}
    # Pointers and sizes divisible by 16, as Triton specialises a launch whose tensors are.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    return ASTSource(kernel.function, signature, compiled_in, aligned), constants, config


def cuda_usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its local memory, which kernels without arrays use for spills alone."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        program = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def hip_usage(assembly: str) -> tuple[int, int]:
    """Vector registers of a thread, and all registers spilled."""
    registers, *spilled = (
        int(re.search(rf"\.{name}:\s*(\d+)", assembly)[1])
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
    )
    return registers, sum(spilled)


def has_matrix_instruction(line: str) -> bool:
    """Whether a line of Triton's IR is a product that chips have an instruction for: not float32 in full precision."""
    operand = re.search(r"tt\.dot .*tensor<[\dx]+x(\w+)> \* ", line)
    return operand is not None and (operand[1] != "f32" or "tf32" in line)


def compiled(case: Case) -> Row:
    """Compile one case."""
    kernel = load_kernels()[case.kernel]
    program, constants, config = source(kernel, case)
    shown = (" ".join(f"{name}={value}" for name, value in part.items()) for part in (constants, config))
    row = Row(kernel.name, case.target, case.dtype, case.width, *shown)
    row.shared_limit = SHARED_LIMITS[case.target]
    options = {name: value for name, value in config.items() if name not in kernel.function.arg_names}
    try:
        result = triton_compile(program, target=TARGETS[case.target], options=options)
    except Exception as error:
        row.error = f"{type(error).__name__}: {error}"[-2000:]
        return row
    cuda = case.target.startswith("cuda")
    assembly = result.asm["ptx" if cuda else "amdgcn"]
    row.registers, row.spilled = cuda_usage(result.asm["cubin"]) if cuda else hip_usage(assembly)
    row.shared = result.metadata.shared
    row.dots = any(map(has_matrix_instruction, result.asm["ttir"].splitlines()))
    row.matrix_instructions = bool(re.search(MATRIX_INSTRUCTIONS[case.target], assembly))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every configuration for every width and dtype")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    arguments = parser.parse_args()
    chosen = [case for case in cases(arguments.all) if arguments.kernel in load_kernels()[case.kernel].name]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for row in pool.map(compiled, chosen, chunksize=4):
            sys.stdout.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
