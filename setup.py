"""Builds the compiled extension with CMake and ninja; without it the package is pure Python.

Environment: ``CRANE_BUILD=require`` makes a missing extension an error, ``CRANE_BUILD=0`` does not build it;
``MAX_JOBS`` bounds the compilers that run at once (default: the number of processors, at most 4); ``CXX``, ``CXXFLAGS``
and CMake's other variables are CMake's. For the CUDA kernels see ``build_cuda.py``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from build_backend import find_compiler, find_torch  # noqa: E402
from build_cuda import (  # noqa: E402
    CudaNotBuiltError,
    Toolchain,
    cuda_mode,
    find_toolchain,
    kernels_of_build,
    register_table,
)

LIBRARIES = ("_ops*.so", "_host*.so")


class NotBuiltError(Exception):
    """Why there is no extension, in a phrase that follows "because"."""


def build_mode() -> str:
    """The checked value of ``CRANE_BUILD``."""
    mode = os.environ.get("CRANE_BUILD", "")
    if mode not in ("", "0", "1", "require"):
        raise SystemExit(f"CRANE_BUILD: found {mode!r}, expected 0, 1 or require")
    return mode


def max_jobs() -> int:
    """How many compilers may run at once."""
    text = os.environ.get("MAX_JOBS", "")
    if not text:
        return min(os.cpu_count() or 1, 4)
    if not text.isdecimal() or int(text) < 1:
        raise SystemExit(f"MAX_JOBS: found {text!r}, expected a number of at least 1")
    return int(text)


def find_tool(name: str) -> str:
    """Path of ``cmake`` or ``ninja``: beside this Python, else on PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise NotBuiltError(f"{name} was not found")
    return path


def run(*command: str | Path) -> None:
    """Run a step of the build, showing its output."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode != 0:
        raise NotBuiltError(f"the build failed ({first_error(done.stdout)})")


def first_error(output: str) -> str:
    """The first error in a build's output: the compiler's, else CMake's, which stands below its place."""
    lines = [line.strip() for line in output.splitlines()]
    for number, line in enumerate(lines):
        if "error:" in line:
            return line[:300]
        if line.startswith("CMake Error"):
            return sentence(lines[number + 1 :]) or line[:300]
    return "no message"


def sentence(lines: list[str]) -> str:
    """The first sentence of a message that is broken into lines."""
    words: list[str] = []
    for line in filter(None, lines):
        words.append(line)
        if line.endswith("."):
            break
    return " ".join(words).removesuffix(".")[:300]


def build_libraries(work: Path, target: Path) -> dict[str, Any]:
    """Compile in ``work``, put the libraries in ``target`` and say what they were built with.

    Raises:
        NotBuiltError: something is missing, or the compiler failed.
    """
    if sys.platform != "linux":
        raise NotBuiltError(f"it is built on Linux only, not on {sys.platform}")
    if find_compiler() is None:
        raise NotBuiltError("no C++ compiler was found (CXX, c++, g++ or clang++)")
    found = find_torch()
    if found is None:
        raise NotBuiltError("torch 2.13 or newer was not found at build time")
    pybind11 = importlib.util.find_spec("pybind11")
    if pybind11 is None or pybind11.origin is None:
        raise NotBuiltError("pybind11 was not found at build time")
    torch_folder, torch_version = found
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
        "Python3_EXECUTABLE": sys.executable,
        "TORCH_INCLUDE": torch_folder / "include",
        "TORCH_LIB": torch_folder / "lib",
        "PYBIND11_INCLUDE": Path(pybind11.origin).parent / "include",
    }
    cuda, staged = compile_libraries(work, options, torch_folder)
    target.mkdir(parents=True, exist_ok=True)
    remove_libraries(target)
    for library in staged.iterdir():
        shutil.copy2(library, target / library.name)
    compiler = (staged.parent / "compiler.txt").read_text(encoding="utf-8").strip()
    return {"built": True, "torch": torch_version, "compiler": compiler, "cuda": cuda}


def compile_libraries(work: Path, options: dict[str, Any], torch_folder: Path) -> tuple[dict[str, Any], Path]:
    """Compile with CUDA kernels where they can be built, else without; returns their record and the libraries' folder.

    Raises:
        NotBuiltError: the compiler failed.
    """
    try:
        toolchain = find_toolchain(torch_folder)
        staged = run_cmake(work.with_name(work.name + "-cuda"), options | cuda_options(toolchain))
    except (CudaNotBuiltError, NotBuiltError) as error:
        if cuda_mode() == "require":
            raise SystemExit(
                f"The CUDA kernels of crane_kernels could not be built, because {error}, and CRANE_CUDA=require asks "
                "for them."
            ) from None
        print(f"crane_kernels is built without CUDA kernels, because {error}.", file=sys.stderr)
        return {"built": False, "reason": str(error)}, run_cmake(work, options)
    kernels = kernels_of_build(staged.parent)
    print(register_table(kernels), flush=True)
    record = {"built": True, "nvcc": toolchain.version, "architectures": toolchain.architectures}
    return record | {"kernels": [[k.name, k.architecture, k.registers, k.spilled_bytes] for k in kernels]}, staged


def cuda_options(toolchain: Toolchain) -> dict[str, Any]:
    """CMake's variables for the CUDA kernels."""
    return {
        "CRANE_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": toolchain.nvcc,
        "CMAKE_CUDA_ARCHITECTURES": ";".join(toolchain.architectures),
    }


def run_cmake(work: Path, options: dict[str, Any]) -> Path:
    """Configure, build and install below ``work``; returns the folder of the libraries."""
    cmake, staged = find_tool("cmake"), work / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    run(cmake, "--fresh", "-S", ROOT, "-B", work, "-G", "Ninja", *(f"-D{key}={path}" for key, path in options.items()))
    run(cmake, "--build", work, "--parallel", str(max_jobs()))
    run(cmake, "--install", work, "--prefix", staged)
    return staged


def remove_libraries(folder: Path) -> None:
    """Delete libraries of an earlier build, so that none is taken for this one's."""
    for pattern in LIBRARIES:
        for library in folder.glob(pattern):
            library.unlink()


class BuildExtension(build_ext):
    """Builds with CMake instead of distutils, and goes on without the extension where it may."""

    built: bool | None = None  # not known before it has run

    def run(self) -> None:
        if self.built is not None:
            return  # setuptools begins anew with it within bdist_wheel, after ``Wheel`` has asked
        mode = build_mode()
        in_place = self.inplace or self.editable_mode
        self.target = (ROOT if in_place else Path(self.build_lib).resolve()) / "crane_kernels"
        try:
            if mode == "0":
                raise NotBuiltError("CRANE_BUILD=0 was set at build time")
            record = build_libraries(Path(self.build_temp).resolve() / "cmake", self.target)
        except NotBuiltError as error:
            if mode == "require":
                raise SystemExit(
                    f"The compiled extension of crane_kernels could not be built, because {error}, and "
                    "CRANE_BUILD=require asks for it."
                ) from None
            record = {"built": False, "reason": str(error)}
            remove_libraries(self.target)
            print(
                f"crane_kernels is installed as pure Python, on its slower reference implementations, because {error}.",
                file=sys.stderr,
            )
        self.target.mkdir(parents=True, exist_ok=True)
        (self.target / "_build.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        self.built = bool(record["built"])

    def get_outputs(self) -> list[str]:
        files = [path for pattern in LIBRARIES for path in self.target.glob(pattern)]
        return [str(path) for path in [*files, self.target / "_build.json"]]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class Wheel(bdist_wheel):
    """Builds the extension first, as the wheel's tag depends on whether there is one."""

    def run(self) -> None:
        self.run_command("build_ext")
        if not self.get_finalized_command("build_ext").built:
            self.root_is_pure = True
            self.distribution.ext_modules = []
            # The extension's files go where the distribution still builds: nothing else follows from its kind.
        super().run()


setup(
    packages=find_packages(include=["crane", "crane.*", "crane_kernels", "crane_kernels.*"]),
    ext_modules=[Extension("crane_kernels._host", sources=[])],
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": Wheel},
)
